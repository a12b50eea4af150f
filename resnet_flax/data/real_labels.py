"""ImageNet-ReaL: several labels for an image, and none for some (Beyer et al., arXiv:2006.07159)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_flax.data.class_list import read_text
from resnet_flax.errors import UserError

IMAGES = 50_000  # of ImageNet's validation set
CLASSES = 1000


class RealAccuracy(NamedTuple):
    """The accuracy of predictions by ReaL labels.

    Attributes:
        accuracy: the fraction whose class is one of the image's labels; NaN if no image has any.
        count: images with labels.
        skipped: images without.
    """

    accuracy: float
    count: int
    skipped: int

    def __str__(self) -> str:
        return f"ReaL accuracy {self.accuracy:.2%} over {self.count:,} images ({self.skipped:,} without labels skipped)"


def read_real_labels(path: Path) -> list[frozenset[int]]:
    """The labels of each image of ImageNet's validation set, as the authors' real.json has them.

    Raises:
        UserError: if the file is not a list of 50,000 lists of class numbers.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    rows = content if isinstance(content, list) else []
    if len(rows) != IMAGES or not all(
        isinstance(row, list) and all(type(label) is int and 0 <= label < CLASSES for label in row) for row in rows
    ):
        raise UserError(
            f"{path} must be ImageNet-ReaL's real.json: a list of {IMAGES:,} lists of class numbers, one for each "
            "image of the validation set"
        )
    return [frozenset(row) for row in rows]


def validation_numbers(paths: Sequence[str]) -> list[int]:
    """The number of each image in ImageNet's validation set, from 0, by the name ILSVRC2012_val_00000001.JPEG.

    Raises:
        UserError: for a file of another name.
    """
    numbers = []
    for path in paths:
        found = re.match(r"ILSVRC2012_val_(\d{8})\.", Path(path).name)
        if not found or not 1 <= int(found[1]) <= IMAGES:
            raise UserError(
                f"{path} is not an image of ImageNet's validation set by its name, ILSVRC2012_val_00000001.JPEG to "
                "..._00050000.JPEG, which ReaL labels go by"
            )
        numbers.append(int(found[1]) - 1)
    return numbers


def real_accuracy(predicted: np.ndarray, numbers: Sequence[int], labels: Sequence[frozenset[int]]) -> RealAccuracy:
    """The accuracy of predicted classes (N,), -1 where an image could not be read, of images with these numbers."""
    read = [(int(guess), labels[number]) for guess, number in zip(predicted, numbers, strict=True) if guess >= 0]
    right = [guess in own for guess, own in read if own]
    return RealAccuracy(float(np.mean(right)) if right else float("nan"), len(right), len(read) - len(right))
