"""Encoded image -> RGB pixels, bit-identical to Pillow's `Image.open(...).convert("RGB")`, and faster for JPEG.

torchvision's ImageFolder converts every file that way: EXIF orientation is not applied, alpha is dropped, palettes are
looked up, CMYK is converted as Pillow does. Only grey images of 16 or 32 bits, which Pillow would turn white, are
refused.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from resnet_flax.errors import UserError


class CorruptImage(UserError):
    """An image that cannot be read or decoded: "cannot read image NAME: REASON; ADVICE".

    Attributes:
        name: its path, or its place in the data set.
        reason: what is wrong with it.
        advice: what to do about it; may be empty.
    """

    def __init__(self, name: str, reason: str, advice: str = ""):
        super().__init__(name, reason, advice)  # all of them, so that it can be pickled
        self.name, self.reason, self.advice = name, reason, advice

    def __str__(self) -> str:
        return f"cannot read image {self.name}: {self.reason}" + (f"; {self.advice}" if self.advice else "")


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or PNM image to uint8 (H, W, 3).

    JPEGs are decoded by simplejpeg, which is faster and bit-identical to Pillow. It converts CMYK differently and
    rejects slightly damaged files: Pillow decodes these.

    Args:
        data: the content of the image file.
        name: what errors call the image.

    Raises:
        CorruptImage: if it is not an image, truncated, or empty.
    """
    if data.startswith(b"\xff\xd8"):
        try:
            if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass
    return np.asarray(_decode_with_pillow(data, name, "RGB"))


def decode_grey(data: bytes, name: str) -> np.ndarray:
    """Decodes an image stored as one grey channel to uint8 (H, W, 1); raises as `decode_rgb`."""
    return np.asarray(_decode_with_pillow(data, name, "L"))[..., None]


def _decode_with_pillow(data: bytes, name: str, mode: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;"):  # Pillow would make all above 255 white
            raise CorruptImage(name, "its grey values have more than 8 bits", "store it with 8")
        # The same colours, without Pillow's warning about transparency in a palette.
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert(mode)
    except CorruptImage:
        raise
    except Exception as error:  # Pillow's readers raise errors of any type for a damaged header
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is empty" if not data else "not an image" if unknown else str(error)
        raise CorruptImage(name, reason) from error
