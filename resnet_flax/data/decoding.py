"""Encoded image -> RGB pixels, bit-identical to Pillow's `Image.open(...).convert("RGB")`, and faster for JPEG.

torchvision's ImageFolder converts every file that way: EXIF orientation is not applied, alpha is dropped, palettes are
looked up, CMYK is converted as Pillow does. Only grey images of 16 or 32 bits, which Pillow would turn white, are
refused. `Decoding` has what differs on request.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from parity.options import Range, option_group
from resnet_flax.errors import UserError

PIXELS = 178_956_970
"""Twice Pillow's `MAX_IMAGE_PIXELS`, where it refuses an image: half a gigabyte of RGB."""


@option_group
@dataclass(frozen=True)
class Decoding:
    """What becomes of an image file; by default what torchvision makes of it."""

    exif_orientation: bool = False
    """Turn each image as its EXIF orientation tells, which torchvision does not."""
    scale_16_bit: bool = False
    """Read grey images of 16 bits as 8, 0 to 65535 becoming 0 to 255; by default they are refused."""
    max_pixels: Annotated[int, Range(ge=1, le=2**62)] = PIXELS  # a PNG has up to 2**31 on a side
    """The largest image, in pixels, that is decoded: a small file may hold a huge one."""


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


def decode_rgb(data: bytes, name: str, decoding: Decoding | None = None) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or PNM image to uint8 (H, W, 3).

    JPEGs are decoded by simplejpeg, which is faster and bit-identical to Pillow. It converts CMYK differently and
    rejects slightly damaged files: Pillow decodes these.

    Args:
        data: the content of the image file.
        name: what errors call the image.
        decoding: `Decoding()` if None.

    Raises:
        CorruptImage: if it is not an image, truncated, empty, or too large.
    """
    decoding = decoding or Decoding()
    if data.startswith(b"\xff\xd8") and not decoding.exif_orientation:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _require_size(name, int(width), int(height), decoding)
            if colours in ("YCbCr", "RGB", "Gray"):
                return simplejpeg.decode_jpeg(data, "RGB")
        except CorruptImage:
            raise
        except ValueError:
            pass
    return np.asarray(_decode_with_pillow(data, name, "RGB", decoding))


def decode_grey(data: bytes, name: str, decoding: Decoding | None = None) -> np.ndarray:
    """Decodes an image stored as one grey channel to uint8 (H, W, 1); raises as `decode_rgb`."""
    return np.asarray(_decode_with_pillow(data, name, "L", decoding or Decoding()))[..., None]


def _require_size(name: str, width: int, height: int, decoding: Decoding) -> None:
    if width * height > decoding.max_pixels:
        raise CorruptImage(
            name,
            f"it has {width:,}x{height:,} = {width * height:,} pixels, more than --max-pixels {decoding.max_pixels:,}",
            f"if it is what it should be, raise the limit with --max-pixels {width * height}",
        )


_opening = threading.Lock()


@contextmanager
def _own_limit() -> Generator[None]:
    """Pillow's limit, a global with a warning below it, is replaced by ours for as long as a header takes to read."""
    with _opening:
        theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = theirs


def _decode_with_pillow(data: bytes, name: str, mode: str, decoding: Decoding) -> Image.Image:
    try:
        with _own_limit():
            image = Image.open(io.BytesIO(data))
        kind = image.format
        if kind == "EPS":
            raise CorruptImage(name, "it is PostScript, a program, which is not run")
        _require_size(name, *image.size, decoding)
        image.load()
        if decoding.exif_orientation:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
            if not decoding.scale_16_bit:
                raise CorruptImage(
                    name, "its grey values have more than 8 bits", "store it with 8, or add --scale-16-bit"
                )
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))  # 65535 = 255 * 257
        if image.mode in ("I", "F"):  # Pillow would make all above 255 white
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


# About EXIF data and TIFF tags that are damaged; whether the pixels are, the decoder finds out.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
