"""What the norms of a network are given by images, in units of what they were trained with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Moments:
    """A norm's inputs, standardised by the norm itself: (x - running mean) / sqrt(running variance + epsilon).

    Attributes:
        mean, square: float32 (images, channels), the means over each image's pixels of these and of their squares.
        epsilon: float32 (channels,), the norm's epsilon in the same units: epsilon / (running variance + epsilon).
    """

    mean: np.ndarray
    square: np.ndarray
    epsilon: np.ndarray


Profile = dict[str, Moments]
"""By the norms' names, in the order of their calls."""


def joined(parts: Sequence[Profile]) -> Profile:
    """The profiles of several batches of images as one."""
    return {
        name: Moments(
            np.concatenate([part[name].mean for part in parts]),
            np.concatenate([part[name].square for part in parts]),
            first.epsilon,
        )
        for name, first in parts[0].items()
    }
