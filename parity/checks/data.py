"""Images and labels before they reach a network: same pixels, same class numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torchvision.transforms.functional as tvf
from PIL import Image

from parity.checks.tolerance import Error
from parity.reports.results import Comparison, Finding, Report

GREY_LEVELS = 1.0
"""How far rounding may move a resized pixel of 0..255."""

_Pixels = Callable[[Image.Image], np.ndarray]


def check_preprocessing(
    transform: _Pixels, images: Sequence[Image.Image], *, resize_size: int, crop_size: int
) -> Report:
    """Compares an evaluation transform with torchvision's: shorter side to `resize_size`, centre crop.

    Args:
        transform: a PIL image -> uint8 pixels (crop_size, crop_size, C).
        images: of several shapes, higher than wide and wider than high; at least a third larger than `resize_size`,
            so that resizing without a low-pass filter shows.

    Examples:
        >>> import numpy as np, parity
        >>> from PIL import Image
        >>> from resnet_flax.data import EvaluationTransform
        >>> rng = np.random.default_rng(0)
        >>> images = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((60, 48), (48, 70))]
        >>> parity.check_preprocessing(EvaluationTransform(32, 28), images, resize_size=32, crop_size=28).passed
        True
    """
    report = Report({"flax network": "preprocessing", "torch network": "torchvision's", "precision": "uint8"})
    report.settings["inputs"] = [len(images), crop_size, crop_size]
    for number, image in enumerate(images):
        ours, theirs = transform(image), _torchvision(image, resize_size, crop_size)
        row = _compared(f"image {number} ({image.width}x{image.height})", ours, theirs)
        report.comparisons.append(row)
        if not row.passed and not report.findings:
            cause = next(
                (words for words, pixels in _variants(image, resize_size, crop_size) if _close(ours, pixels)),
                "the pixels differ",
            )
            report.findings = [Finding(row.name, cause, f"up to {row.error.max_abs:.0f} grey levels")]
    return report


def _compared(name: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    if ours.shape != theirs.shape:
        note = f"shape {ours.shape}, torchvision's is {theirs.shape}"
        return Comparison("preprocessing", "", name, Error(np.inf, np.inf, np.inf, 0.0), note=note)
    largest = float(np.abs(ours.astype(int) - theirs).max())
    # In grey levels, whose unit in the last place is 1.
    error = Error(largest, largest, largest, float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]))
    return Comparison("preprocessing", "", name, error, tolerance=GREY_LEVELS)


def _close(ours: np.ndarray, pixels: np.ndarray) -> bool:
    """Equal up to rounding nearly everywhere: other libraries' kernels differ at a few pixels."""
    return ours.shape == pixels.shape and float((np.abs(ours.astype(int) - pixels) > 2).mean()) < 1e-2


def _pixels(image: Any) -> np.ndarray:
    """(H, W, C), C 1 for grey."""
    return np.atleast_3d(np.asarray(image))


def _torchvision(image: Image.Image, resize_size: int, crop_size: int) -> np.ndarray:
    return _pixels(tvf.center_crop(_resized(image, resize_size), [crop_size]))


def _resized(image: Image.Image, *size: int) -> Any:
    return tvf.resize(cast(Any, image), list(size))  # annotated for tensors only


def _variants(image: Image.Image, resize_size: int, crop_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """What known faults would turn an image into."""
    pixels = torch.tensor(_pixels(image)).permute(2, 0, 1)
    blunt = tvf.center_crop(tvf.resize(pixels, [resize_size], antialias=False), [crop_size])
    yield "resizes without antialiasing; torchvision and PIL filter first", blunt.permute(1, 2, 0).numpy()
    resized = _resized(image, resize_size)
    for words, rounding in (("down", np.floor), ("up", np.ceil)):
        top, left = (int(rounding((size - crop_size) / 2)) for size in (resized.height, resized.width))
        cropped = _pixels(tvf.crop(resized, top, left, crop_size, crop_size))
        yield (
            f"the crop's offset is rounded {words}; torchvision rounds to even: int(round((size - crop) / 2))",
            cropped,
        )
    width, height = image.size
    long = round(resize_size * max(width, height) / min(width, height))
    shape = [resize_size, long] if height <= width else [long, resize_size]
    rounded = _pixels(tvf.center_crop(_resized(image, *shape), [crop_size]))
    yield "the long side is rounded; torchvision truncates: int(size * long / short)", rounded
    for size in range(crop_size, 2 * crop_size):
        if size != resize_size:
            yield f"resizes to {size} instead of {resize_size}", _torchvision(image, size, crop_size)


def check_classes(ours: Sequence[str], theirs: Sequence[str]) -> Report:
    """Compares class names in the order of their numbers; torchvision sorts folder names as strings.

    Args:
        ours, theirs: the names, in the order of their numbers.

    Examples:
        >>> import parity
        >>> report = parity.check_classes(["1", "2", "10"], ["1", "10", "2"])
        >>> print(report.findings[0].cause)
        names are sorted naturally ("2" before "10"); torchvision sorts them as strings
    """
    report = Report({"flax network": "class numbers", "torch network": "PyTorch's", "precision": "names"})
    report.settings["inputs"] = [len(theirs)]
    wrong = [index for index, name in enumerate(theirs) if index >= len(ours) or ours[index] != name]
    for index, name in enumerate(theirs):
        failed = float(index in wrong)
        report.comparisons.append(Comparison("classes", "", name, Error(failed, failed, failed, 1 - failed)))
    if wrong:
        naturally = sorted(theirs, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
        cause = "the names are in another order"
        if sorted(ours) != sorted(theirs):
            cause = "the names are not the same"
        elif list(ours) == naturally:
            cause = 'names are sorted naturally ("2" before "10"); torchvision sorts them as strings'
        report.findings = [Finding(f"class {wrong[0]}", cause, f"{len(wrong)} of {len(theirs)} classes")]
    return report
