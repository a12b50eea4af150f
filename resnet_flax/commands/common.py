"""What the commands that run a model on images have in common: arguments, and the loop over the images."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import track

from parity.errors import printable
from parity.options import PositiveInt
from resnet_flax.cache import use_compilation_cache
from resnet_flax.data.decoding import Decoding
from resnet_flax.data.on_device import normalize
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.inference import Outputs, read_batches
from resnet_flax.models.options import ModelOptions
from resnet_flax.text import PlainConsole
from resnet_flax.weights.guard import IMAGES, doubt
from resnet_flax.weights.load import load_pretrained
from resnet_flax.weights.pretrained import Pretrained
from resnet_flax.weights.use import Use


@dataclass(frozen=True, kw_only=True)
class ModelArguments(Use, ModelOptions):
    weights: str
    """torchvision's name (IMAGENET1K_V2, DEFAULT), hf-hub:OWNER/REPOSITORY, or a .safetensors or .pth file or
    Orbax directory."""
    model: str | None = None
    """Architecture; by default that of the weights."""
    prefix: str | None = None
    """What the names of the network begin with in a file that holds several, such as teacher."""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)

    def load(self) -> Pretrained:
        """Loads the model, with what the options change, and prints what was assumed or changed to stderr.

        Raises:
            UserError: for weights that cannot be used, or options that do not fit them.
        """
        pretrained = load_pretrained(
            self.model, self.weights, prefix=self.prefix, class_names=self.names(), **self.arguments()
        )
        for note in pretrained.notes:
            print(printable(note), file=sys.stderr)
        return replace(pretrained, preprocessing=self._preprocessing(pretrained))

    def _preprocessing(self, pretrained: Pretrained) -> Preprocessing:
        own = self.changed(pretrained.preprocessing, pretrained.model.in_channels)
        given, kept = self.decoding, own.decoding
        decoding = replace(
            given,
            exif_orientation=given.exif_orientation or kept.exif_orientation,
            scale_16_bit=given.scale_16_bit or kept.scale_16_bit,
        )
        return replace(own, decoding=decoding)


@dataclass(frozen=True, kw_only=True)
class ImageArguments(ModelArguments):
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...", help_behavior_hint="")]
    """Files, folders, patterns, or - for a list of files on stdin."""
    batch_size: PositiveInt = 32
    """Images per batch."""


def run_on_images(
    paths: Sequence[Path], batch_size: int, pretrained: Pretrained, apply: Callable[..., Outputs]
) -> Iterator[tuple[list[Path], Outputs, int]]:
    """Yields (paths, their outputs, number of unreadable images) for each batch, with a progress bar for many.

    If the preprocessing is assumed, a doubt about the first batch is printed to stderr.
    """
    use_compilation_cache()
    batches = read_batches(paths, pretrained, batch_size)
    total = -(-len(paths) // batch_size)
    console = PlainConsole(stderr=True)
    is_assumed = not pretrained.says_preprocessing
    for batch in track(batches, f"{len(paths)} images", total, console=console, transient=True, disable=total < 3):
        for message in batch.unreadable:
            console.print(message, soft_wrap=True)
        outputs = {}
        if batch.paths:
            if is_assumed:
                images = batch.images[: min(IMAGES, len(batch.paths))]
                used = pretrained.preprocessing
                if note := doubt(pretrained.model, normalize(images, used.mean, used.std)):
                    console.print(f"warning: {note}", soft_wrap=True)
                is_assumed = False
            outputs = {name: values[: len(batch.paths)] for name, values in apply(batch.images).items()}
        yield batch.paths, outputs, len(batch.unreadable)
