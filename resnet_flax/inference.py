"""Images in, probabilities or activations out."""

import glob
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from parity.conversion.files import open_regular
from resnet_flax.data.decoding import CorruptImage, decode_grey, decode_rgb
from resnet_flax.data.folder import read_image
from resnet_flax.data.layout import image_files
from resnet_flax.errors import UserError
from resnet_flax.weights.pretrained import Pretrained, compiled

Outputs = dict[str, np.ndarray]


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files given by arguments: files, folders (searched recursively), patterns, or - for a list on stdin.

    Raises:
        UserError: if there are no arguments, one matches no image, or not a single one is a file that can be opened.
    """
    images: list[Path] = []
    reasons: list[str] = []
    if not arguments:
        raise UserError("no images given; name files, folders, patterns, or - for a list of files on stdin")
    for argument in arguments:
        if argument == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
            lines = sys.stdin or ()  # closed, as with <&-
            images += [Path(line.strip(" \r\n")) for line in lines if line.strip()]
            continue
        path = Path(argument)
        try:
            if path.is_dir():
                paths = [Path(name) for name in image_files(path)]
            elif path.exists():
                paths = [path]
            else:
                paths = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207
        except (OSError, ValueError) as error:
            raise UserError(f"{argument}: {getattr(error, 'strerror', None) or error}") from error
        if not paths:
            raise UserError(f"{argument}: no such image, and no folder or pattern with images in it")
        images += paths
    for path in images:
        try:
            open_regular(path).close()
        except OSError as error:
            reasons.append(f"{path}: {error.strerror or error}")
        else:
            return images
    others = f" (and {len(reasons) - 1:,} others like it)" if len(reasons) > 1 else ""
    raise UserError(f"cannot read image {reasons[0]}{others}" if reasons else "the list on stdin is empty")


@dataclass(frozen=True)
class Batch:
    """A batch of the images given.

    Attributes:
        paths: of the readable ones.
        images: uint8 (batch_size, H, W, C); the rows after the first `len(paths)` are padding.
        unreadable: why each of the others could not be read.
    """

    paths: list[Path]
    images: np.ndarray
    unreadable: list[str]


def read_batches(paths: Sequence[Path], pretrained: Pretrained, batch_size: int) -> Iterator[Batch]:
    """Reads images and applies the weights' preprocessing, `batch_size` at a time.

    Raises:
        UserError: if the network takes neither 1 nor 3 channels, or the images of a batch differ in size.
    """
    channels = pretrained.model.in_channels
    if channels not in (1, 3):
        raise UserError(f"the network takes {channels} channels, but image files are read with 1 or 3")
    decode, decoding = decode_grey if channels == 1 else decode_rgb, pretrained.preprocessing.decoding
    for start in range(0, len(paths), batch_size):
        read, images, unreadable = [], [], []
        for path in paths[start : start + batch_size]:
            try:
                image = decode(read_image(path), str(path), decoding)
            except CorruptImage as error:
                unreadable.append(str(error))
            else:
                images.append(pretrained.preprocessing.transform(image))
                read.append(path)
        if images:
            if len({image.shape for image in images}) > 1:
                raise UserError(
                    "the images differ in size, and the weights' preprocessing does not crop; give images of one size"
                )
            padding = [np.zeros_like(images[0])] * (min(batch_size, len(paths)) - len(images))
            yield Batch(read, np.stack(images + padding), unreadable)
        else:
            yield Batch(read, np.zeros((0, 1, 1, channels), np.uint8), unreadable)


def make_apply(pretrained: Pretrained, taps: Sequence[str] = ()) -> Callable[[np.ndarray], Outputs]:
    """A compiled function from uint8 images (N, H, W, C) to float32 outputs.

    They are {"probabilities": (N, classes)}, or with `taps` the activations at those, {tap: (N, h, w, c)}. It is
    compiled once for each shape of images.

    Raises:
        UserError: for an unknown tap.
    """
    model, preprocessing = pretrained.model, pretrained.preprocessing
    if unknown := [tap for tap in taps if tap not in model.taps]:
        raise UserError(f"no tap named {', '.join(unknown)}; the taps are {', '.join(model.taps)}")
    state, apply = nnx.state(model), compiled(model, preprocessing, taps)
    return lambda images: jax.tree.map(np.asarray, apply(state, images))


def top_classes(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The indices (N, k) of the k largest of probabilities (N, classes), the largest first."""
    return np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
