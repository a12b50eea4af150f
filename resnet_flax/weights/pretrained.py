"""A model with weights and what is needed to use it: pixels in, probabilities of named classes out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.errors import printable
from resnet_flax.data.decoding import decode_grey, decode_rgb
from resnet_flax.data.folder import read_image
from resnet_flax.data.on_device import normalize
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet

NAMES_SHOWN = 4


def compiled(
    model: ResNet, preprocessing: Preprocessing, taps: Sequence[str] = ()
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """A compiled function of the model's state and uint8 images (N, H, W, C) to float32 outputs, in eval mode.

    They are {"probabilities": (N, classes)}, or with `taps` the activations of `ResNet.features`, {tap: (N, ...)}.
    """
    graph = nnx.graphdef(model)

    @jax.jit
    def apply(state: Any, images: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graph, state)
        model.eval()
        x = normalize(images, preprocessing.mean, preprocessing.std)
        outputs = model.features(x, taps) if taps else {"probabilities": jax.nn.softmax(model(x).astype(jnp.float32))}
        return jax.tree.map(lambda y: y.astype(jnp.float32), outputs)

    return apply


@dataclass(frozen=True, repr=False)
class Predictions:
    """What a network makes of some images; printing shows the most likely classes of each.

    Attributes:
        probabilities: float32 (N, classes).
        class_names: of the classes; their numbers where the names are unknown.

    Examples:
        >>> import numpy as np
        >>> from resnet_flax import Predictions
        >>> predictions = Predictions(np.array([[0.25, 0.75]], np.float32), ("cat", "dog"))
        >>> predictions.top(1)
        [[('dog', 0.75)]]
        >>> print(predictions)
        0  dog 75.00%, cat 25.00%
    """

    probabilities: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.probabilities)

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most likely classes of each image, as (name, probability), the most likely first."""
        order = np.argsort(-self.probabilities, axis=-1, kind="stable")[:, :k]
        return [
            [(self.class_names[index], float(row[index])) for index in indices]
            for row, indices in zip(self.probabilities, order, strict=True)
        ]

    def __repr__(self) -> str:
        return "\n".join(
            f"{number}  " + ", ".join(f"{printable(name)} {probability:.2%}" for name, probability in row)
            for number, row in enumerate(self.top(3))
        )


@dataclass(frozen=True, repr=False)
class Pretrained:
    """A model with weights, in eval mode, and what is needed to use it.

    Attributes:
        model: the network.
        architecture: its name in the table of architectures.
        source: where the weights came from.
        preprocessing: what images have to go through.
        says_preprocessing: whether the preprocessing came with the weights; if not, it is an assumption (ImageNet's).
        class_names: of the logits; None if they are unknown, or the head is new.
        notes: what was assumed or changed, one sentence each.

    Examples:
        >>> import parity, resnet_flax
        >>> from safetensors.numpy import save_file
        >>> model = resnet_flax.create_model("test_resnet", num_classes=2)
        >>> save_file(parity.to_torch(model), "mine.safetensors")
        >>> pretrained = resnet_flax.load_pretrained(None, "mine.safetensors", class_names=("cat", "dog"))
        >>> pretrained.says_preprocessing, pretrained.notes
        (False, ("no preprocessing came with mine.safetensors; assumed: torchvision's for ImageNet",))
        >>> pretrained.predict("cat.jpg").top(1)  # doctest: +SKIP
        [[('cat', 0.97)]]
    """

    model: ResNet
    architecture: str
    source: str
    preprocessing: Preprocessing
    says_preprocessing: bool
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]

    def predict(self, images: Any) -> Predictions:
        """Classifies images, with the preprocessing of the weights; compiled once for each number of images.

        Args:
            images: one image or a sequence of them. Each is a file, a PIL image, or pixels as uint8 (H, W, C); several
                may be one array, uint8 (N, H, W, C).

        Raises:
            UserError: for floats (call `model` on normalised images), other shapes, a network without a head, or images
                that differ in size where the preprocessing does not crop.
            CorruptImage: for a file that cannot be decoded.

        Examples:
            >>> import resnet_flax
            >>> pretrained = resnet_flax.load_pretrained("resnet50", "DEFAULT")  # doctest: +SKIP
            >>> print(pretrained.predict("cat.jpg"))  # doctest: +SKIP
            0  tabby 62.30%, tiger cat 24.10%, Egyptian cat 9.75%
        """
        if self.model.fc is None:
            raise UserError(f"{self.source} has no head, and so no classes; model.features gives its activations")
        several = isinstance(images, Sequence) and not isinstance(images, str)
        several = several or len(getattr(images, "shape", ())) == 4
        pixels = [self.preprocessing.transform(self._pixels(image)) for image in (images if several else [images])]
        if not pixels:
            raise UserError("no images were given")
        if len({image.shape for image in pixels}) > 1:
            raise UserError(
                "the images differ in size, and the weights' preprocessing does not crop; give images of one size"
            )
        outputs = self._compiled(nnx.state(self.model), np.stack(pixels))
        names = self.class_names or tuple(str(index) for index in range(self.model.num_classes))
        return Predictions(np.asarray(outputs["probabilities"]), names)

    @cached_property
    def _compiled(self) -> Callable[[Any, Any], dict[str, jax.Array]]:
        return compiled(self.model, self.preprocessing)

    def _pixels(self, image: Any) -> np.ndarray:
        """An image as uint8 (H, W, C)."""
        channels = self.model.in_channels
        if isinstance(image, str | os.PathLike):
            if channels not in (1, 3):
                raise UserError(f"the network takes {channels} channels, but image files are read with 1 or 3")
            decode = decode_grey if channels == 1 else decode_rgb
            return decode(read_image(image), str(image), self.preprocessing.decoding)
        if hasattr(image, "convert"):  # PIL's
            image = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        pixels = np.asarray(image)
        if pixels.ndim == 2 and channels == 1:
            pixels = pixels[..., None]
        if pixels.dtype != np.uint8:
            raise UserError(
                f"predict takes pixels from 0 to 255 as uint8, which it normalises; got {pixels.dtype}: images that "
                "are normalised already go to the network itself, pretrained.model(images)"
            )
        if pixels.ndim != 3 or pixels.shape[-1] != channels:
            raise UserError(f"predict takes images (H, W, {channels}); got one of shape {pixels.shape}")
        return pixels

    def __repr__(self) -> str:
        rows = [f"{self.architecture} from {self.source}"]
        assumed = "" if self.says_preprocessing else ", assumed"
        rows += [f"  images   {self.preprocessing}{assumed}"]
        count = self.model.num_classes
        names = self.class_names or ()
        more = ", ..." if len(names) > NAMES_SHOWN else ""
        named = f": {', '.join(names[:NAMES_SHOWN])}{more}" if names else ", whose names are unknown"
        rows += [f"  classes  {count:,}{named}" if count else "  classes  none: it has no head"]
        rows += [f"  note     {note}" for note in self.notes]
        return printable("\n".join(rows))
