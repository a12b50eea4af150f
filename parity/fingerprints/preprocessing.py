"""From photographs to what a network may have been trained on: the usual preprocessings, as a table."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from parity.errors import ParityError

CROP = 0.875
"""The part of the shorter side that is kept: 224 of 256 pixels, as torchvision and timm have it by default."""


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 pixels to a network's inputs: ordered, scaled to `range`, then (x - mean) / std per channel.

    Attributes:
        name: what reports call the constants.
        mean, std: one for each channel, in the order in which the network takes them, or one for all.
        channels: their order; "grey" for one.
        range: what 0 and 255 become before the mean is subtracted.
        crop: the central part of the shorter side that is kept, before images are resized to a square; None squeezes
            the whole image into the square. It has no effect on images that are given in one size.

    Examples:
        >>> import numpy as np, parity
        >>> caffe = parity.Preprocessing("Caffe's", mean=(103.94, 116.78, 123.68), channels="BGR", range=(0, 255))
        >>> caffe(np.zeros((1, 4, 4, 3), np.uint8)).shape
        (1, 4, 4, 3)
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Literal["RGB", "BGR", "grey"] = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    crop: float | None = CROP

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (N, H, W, C) from uint8 ones, whose channels are red, green and blue."""
        low, high = self.range
        ordered = pixels[..., ::-1] if self.channels == "BGR" else pixels
        scaled = ordered.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def __str__(self) -> str:
        fit = {CROP: "", None: ", squeezed to a square"}.get(self.crop, f", crop {self.crop}")
        return f"{self.channels}, {self.name}{fit}"

    def as_dict(self, channels: int) -> dict[str, Any]:
        """As JSON has it, with a mean and std for each of the channels."""
        mean, std = (
            list(values) if len(values) == channels else [*values] * channels for values in (self.mean, self.std)
        )
        return {"channels": self.channels, "range": list(self.range), "mean": mean, "std": std, "crop": self.crop}


_COLOUR = (
    Preprocessing("ImageNet's constants", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's references
    Preprocessing("[0, 1]"),
    Preprocessing("[0, 255]", range=(0.0, 255.0)),
    Preprocessing("[-1, 1] (Inception's constants)", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # openai/CLIP, clip/clip.py
    Preprocessing("CLIP's constants", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # Caffe's ilsvrc_2012_mean.npy, averaged over the image
    Preprocessing("Caffe's constants", (123.68, 116.779, 103.939), range=(0.0, 255.0)),
)
_GREY = (
    Preprocessing("[0, 1]", channels="grey"),
    Preprocessing("[0, 255]", channels="grey", range=(0.0, 255.0)),
    Preprocessing("[-1, 1] (mean and std 0.5)", (0.5,), (0.5,), "grey"),
    Preprocessing("ImageNet's constants, averaged", (0.449,), (0.226,), "grey"),
    Preprocessing("MNIST's constants", (0.1307,), (0.3081,), "grey"),
    Preprocessing("Fashion-MNIST's constants", (0.2860,), (0.3530,), "grey"),
)


def preprocessings(channels: int) -> tuple[Preprocessing, ...]:
    """The usual ones for images of that many channels, the most usual first.

    Raises:
        ParityError: for a number of channels other than 1 and 3.
    """
    if channels == 1:
        return _GREY
    if channels != 3:
        raise ParityError(f"the usual preprocessings are for 1 or 3 channels, not {channels}; pass candidates of yours")
    return (*_COLOUR, *(_in_bgr(known) for known in _COLOUR))


def crops(known: Preprocessing) -> tuple[Preprocessing, ...]:
    """The same with the other usual ways to make an image a square."""
    return tuple(replace(known, crop=crop) for crop in (CROP, 1.0, None) if crop != known.crop)


def _in_bgr(known: Preprocessing) -> Preprocessing:
    return replace(known, channels="BGR", mean=known.mean[::-1], std=known.std[::-1])
