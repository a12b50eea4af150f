"""TrivialAugmentWide and RandAugment with torchvision's operations, magnitudes and pixels, on PIL images.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (2021); Cubuk et al.,
"RandAugment: Practical automated data augmentation with a reduced search space" (2019). Ranges as in torchvision's
`transforms.TrivialAugmentWide` and `transforms.RandAugment`; PIL is the library behind both.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BINS = 31

# Per operation: the magnitude of the last bin (None: the operation has none) and whether its sign is random.
# Translations are in pixels for TrivialAugment and a fraction of the side for RandAugment.
TRIVIAL_RANGES: dict[str, tuple[float | None, bool]] = {
    "Identity": (None, False),
    "ShearX": (0.99, True),
    "ShearY": (0.99, True),
    "TranslateX": (32.0, True),
    "TranslateY": (32.0, True),
    "Rotate": (135.0, True),
    "Brightness": (0.99, True),
    "Color": (0.99, True),
    "Contrast": (0.99, True),
    "Sharpness": (0.99, True),
    "Posterize": (6, False),
    "Solarize": (255.0, False),
    "AutoContrast": (None, False),
    "Equalize": (None, False),
}
RAND_RANGES: dict[str, tuple[float | None, bool]] = {
    **TRIVIAL_RANGES,
    "ShearX": (0.3, True),
    "ShearY": (0.3, True),
    "TranslateX": (150 / 331, True),
    "TranslateY": (150 / 331, True),
    "Rotate": (30.0, True),
    "Brightness": (0.9, True),
    "Color": (0.9, True),
    "Contrast": (0.9, True),
    "Sharpness": (0.9, True),
    "Posterize": (4, False),
}
OPERATIONS = tuple(TRIVIAL_RANGES)


def magnitude_of(operation: str, last: float | None, bin_: int) -> float:
    """The magnitude of bin 0 to 30: from 0 to `last` in equal steps, down from 255 for Solarize, bits for Posterize."""
    if last is None:
        return 0.0
    if operation == "Posterize":
        return 8 - int(np.round(np.float32(bin_) / np.float32((BINS - 1) / last)))
    # float32, because torch.linspace is: int(TranslateX) and Solarize's threshold depend on the last bit.
    start, end = (last, 0.0) if operation == "Solarize" else (0.0, last)
    return float(torch_linspace(start, end)[bin_])


def torch_linspace(start: float, end: float) -> np.ndarray:
    """float32 (31,) with torch.linspace's values: computed from the nearer end."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(BINS - 1))
    index = np.arange(BINS)
    # Products and sums in float64, rounded once: torch's kernel fuses them.
    return np.where(index < BINS // 2, first + step * index, last - step * index[::-1]).astype(np.float32)


def apply_operation(image: Image.Image, operation: str, magnitude: float, resample: Image.Resampling) -> Image.Image:
    """One augmentation of an L or RGB image; uncovered areas are filled with black.

    Shears keep the upper left corner, rotation and translation the centre, as in torchvision.
    """
    match operation:
        case "Identity":
            return image
        case "ShearX":
            return _affine(image, (1.0, magnitude, 0.0, 0.0, 1.0, 0.0), resample)
        case "ShearY":
            return _affine(image, (1.0, 0.0, 0.0, magnitude, 1.0, 0.0), resample)
        case "TranslateX":
            return _affine(image, (1.0, 0.0, -float(int(magnitude)), 0.0, 1.0, 0.0), resample)
        case "TranslateY":
            return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(magnitude))), resample)
        case "Rotate":
            return image.rotate(magnitude, resample)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return getattr(ImageEnhance, operation)(image).enhance(1.0 + magnitude)
        case "Posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, math.ceil(magnitude))  # PIL compares integers with it
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
    raise ValueError(f"no augmentation {operation!r}; there are {', '.join(OPERATIONS)}")


def _affine(image: Image.Image, inverse: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, inverse, resample)


def draw_trivial(rng: np.random.Generator) -> tuple[str, float]:
    """An operation, a bin of its range and a sign, each uniform."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    last, signed = TRIVIAL_RANGES[operation]
    magnitude = magnitude_of(operation, last, int(rng.integers(BINS)))
    return operation, -magnitude if signed and rng.integers(2) else magnitude


def draw_rand(rng: np.random.Generator, size: tuple[int, int], bin_: int) -> tuple[str, float]:
    """An operation and a sign, uniform, at the magnitude of the given bin, for an image of `size` (width, height)."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    last, signed = RAND_RANGES[operation]
    if operation in ("TranslateX", "TranslateY"):
        last = 150.0 / 331.0 * size[operation == "TranslateY"]
    magnitude = magnitude_of(operation, last, bin_)
    return operation, -magnitude if signed and rng.integers(2) else magnitude


def trivial_augment_wide(image: Image.Image, rng: np.random.Generator, resample: Image.Resampling) -> Image.Image:
    """One random operation at a random magnitude."""
    return apply_operation(image, *draw_trivial(rng), resample)


def rand_augment(
    image: Image.Image, rng: np.random.Generator, resample: Image.Resampling, operations: int, magnitude: int
) -> Image.Image:
    """`operations` random operations in a row, all at bin `magnitude` of 31."""
    for _ in range(operations):
        image = apply_operation(image, *draw_rand(rng, image.size, magnitude), resample)
    return image
