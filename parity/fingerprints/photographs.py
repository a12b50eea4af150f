"""The images that a network is shown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from parity.conversion.files import open_regular
from parity.errors import ParityError
from parity.fingerprints.preprocessing import Preprocessing

BATCH = 4
"""Images that go through a network at a time."""
MOST = 32
"""Images that are taken of a folder."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Photographs:
    """Images as each preprocessing has them.

    Args:
        pixels: uint8 (H, W, C) each.
        size: of the square that they are resized to; None leaves them as they are.

    Raises:
        ParityError: where images of several sizes are to be left so.
    """

    def __init__(self, pixels: Sequence[np.ndarray], size: int | None):
        if size is None and len({image.shape for image in pixels}) > 1:
            raise ParityError("the images differ in size; give size=, the pixels of a side that the network takes")
        self.pixels, self.size = pixels, size
        self._fitted: dict[float | None, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels[0].shape[-1]

    def batches(self, preprocessing: Preprocessing) -> list[np.ndarray]:
        """float32 (N, H, W, C) each."""
        crop = preprocessing.crop
        if crop not in self._fitted:
            whole = np.stack(self.pixels) if self.size is None else fitted(self.pixels, self.size, crop)
            self._fitted[crop] = whole
        pixels = self._fitted[crop]
        return [preprocessing(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]


def fitted(images: Sequence[Any], size: int, crop: float | None) -> np.ndarray:
    """uint8 (N, size, size, C): the central square, or the whole image squeezed, resized bilinearly with a filter."""
    return np.stack([_fitted(image, size, crop) for image in images])


def _fitted(pixels: np.ndarray, size: int, crop: float | None) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    width, height = image.size
    box = None
    if crop is not None:
        side = crop * min(width, height)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(size, size, pixels.shape[-1])


def as_pixels(images: Any) -> list[np.ndarray]:
    """uint8 (H, W, C) arrays, C 1 or 3, of an array (N, H, W, C), or of arrays or PIL images.

    Raises:
        ParityError: for anything else, or fewer than two images.
    """
    found = [_pixels(image) for image in _each(images)]
    if len(found) < 2:
        raise ParityError(f"{len(found)} image(s) given; a variance over images needs two or more, and 16 are better")
    if len({pixels.shape[-1] for pixels in found}) > 1:
        raise ParityError("some of the images are grey and some in colour; convert them to one kind")
    return found


def _each(images: Any) -> Iterable[Any]:
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise ParityError(f"images must be (N, H, W, C) or a list of (H, W, C); got an array of shape {images.shape}")
    return images


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ParityError(
            "images must be pixels from 0 to 255, uint8 (H, W, 3) in RGB or (H, W, 1), before any normalisation; got "
            f"{pixels.dtype} {pixels.shape}"
        )
    return pixels


def read_folder(folder: Path, channels: int) -> tuple[list[np.ndarray], list[str]]:
    """At most `MOST` of the images in a folder and below it, and notes on what was left.

    They are evenly spread over the sorted paths.

    Args:
        channels: 3 for uint8 (H, W, 3) in RGB, 1 for (H, W, 1).

    Raises:
        ParityError: if the folder has fewer than two images that can be read, or for other numbers of channels.
    """
    if channels not in (1, 3):
        raise ParityError(f"the network takes {channels} channels, and image files are read with 1 or 3")
    if not folder.is_dir():
        raise ParityError(f"{folder} is not a folder; give one with photographs in it")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    images, notes = [], []
    for path in [paths[place * len(paths) // MOST] for place in range(MOST)] if len(paths) > MOST else paths:
        try:
            with open_regular(path) as file, Image.open(file) as image:
                images.append(_pixels(image.convert("RGB" if channels == 3 else "L")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            notes.append(f"warning: {path} cannot be read ({error}) and was skipped")
    if len(images) < 2:
        raise ParityError(f"{folder} has {len(images)} readable image(s); give two or more, better 16 or more")
    if len(paths) > MOST:
        notes.append(f"{MOST} of the {len(paths):,} images in {folder} are used")
    return images, notes
