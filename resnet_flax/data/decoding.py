"""Encoded image -> RGB pixels, the same that Pillow's `Image.open(...).convert("RGB")` gives, as fast as that allows.

That conversion is what torchvision's ImageFolder does with every file: EXIF orientation is not applied, alpha is
dropped, palettes are looked up, and what Pillow makes of CMYK is taken as it comes. Only grey of 16 or 32 bits, which
Pillow would turn into plain white, is refused.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from resnet_flax.errors import UserError


class CorruptImage(UserError):
    """An image that cannot be decoded; the message names it."""


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or PNM image to uint8 (H, W, 3).

    JPEGs go through simplejpeg, bit-identical to Pillow and faster; CMYK, which it converts otherwise, and
    files with a blemish, about which it is strict, are left to Pillow.

    Raises:
        CorruptImage: not an image, truncated, or empty; the message starts with `name`.
    """
    if data.startswith(b"\xff\xd8"):
        try:
            if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass
    return np.asarray(_decode_with_pillow(data, name, "RGB"))


def decode_grey(data: bytes, name: str) -> np.ndarray:
    """Decodes an image that is stored as one grey channel to uint8 (H, W, 1); raises `CorruptImage`."""
    return np.asarray(_decode_with_pillow(data, name, "L"))[..., None]


def _decode_with_pillow(data: bytes, name: str, mode: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;"):  # Pillow would make all above 255 white
            raise ValueError("its grey values have more than 8 bits; store it with 8")
        # The same colours, without Pillow's warning about a palette's transparency.
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert(mode)
    except Exception as error:  # Pillow's readers raise whatever a damaged header leads them to
        reason = (
            "it is empty" if not data else "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        )
        raise CorruptImage(f"cannot read image {name}: {reason}") from error
