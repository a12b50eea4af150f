"""What the commands that run a model on images have in common: arguments, and the loop over the images."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from resnet_flax.errors import UserError
from resnet_flax.inference import Outputs, find_images, read_batches
from resnet_flax.weights.load import Pretrained, load_pretrained


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    weights: str
    """torchvision's name (IMAGENET1K_V2, DEFAULT), hf-hub:OWNER/REPOSITORY, or a .safetensors or .pth file or
    Orbax directory."""
    model: str | None = None
    """Architecture; by default that of the weights."""
    prefix: str | None = None
    """What the names of the network begin with in a file that holds several, such as teacher."""

    def load(self) -> Pretrained:
        """Loads the model, and prints what was assumed or changed to stderr."""
        pretrained = load_pretrained(self.model, self.weights, prefix=self.prefix)
        for note in pretrained.notes:
            print(note, file=sys.stderr)
        return pretrained


@dataclass(frozen=True, kw_only=True)
class ImageArguments(ModelArguments):
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...", help_behavior_hint="")]
    """Files, folders, patterns, or - for a list of files on stdin."""
    batch_size: int = 32
    """Images per batch."""


def run_on_images(
    args: ImageArguments, pretrained: Pretrained, apply: Callable[..., Outputs]
) -> Iterator[tuple[list[Path], Outputs, int]]:
    """Yields (paths, their outputs, number of unreadable images) for each batch, with a progress bar for many."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; it must be at least 1")
    paths = find_images(args.images)
    batches = read_batches(paths, pretrained, args.batch_size)
    total = -(-len(paths) // args.batch_size)
    console = Console(stderr=True)
    for batch in track(batches, f"{len(paths)} images", total, console=console, transient=True, disable=total < 3):
        for message in batch.unreadable:
            console.print(message, markup=False, highlight=False, soft_wrap=True)
        outputs = {}
        if batch.paths:
            outputs = {name: values[: len(batch.paths)] for name, values in apply(batch.images).items()}
        yield batch.paths, outputs, len(batch.unreadable)
