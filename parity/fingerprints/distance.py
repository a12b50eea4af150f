"""How far what the norms were given is from what they were trained with, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parity.fingerprints.moments import Moments, Profile

DRAWS = 200


def distance(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Between the normal distribution of this mean and variance and the standard one, elementwise.

    It is Fisher and Rao's (Atkinson & Mitchell, Sankhya A 43, 1981), times sqrt(2): |log variance| where the mean is 0,
    sqrt(2) |mean| for a small mean and variance 1, and the logarithm of either where it is far off.
    """
    scale = np.sqrt(variance)
    return 2 * np.arccosh(1 + (np.square(mean) / 2 + np.square(scale - 1)) / (2 * scale))


@dataclass(frozen=True)
class Resampling:
    """The bootstrap: the same draws of images, and of each norm's channels, for every candidate.

    Differences between candidates are therefore paired.

    Attributes:
        images: their number.
        seed: of the draws.
    """

    images: int
    seed: int = 0

    @cached_property
    def _weights(self) -> np.ndarray:
        """(1 + DRAWS, images): first the images themselves, then as often as each was drawn."""
        drawn = np.random.default_rng(self.seed).multinomial(self.images, [1 / self.images] * self.images, DRAWS)
        return np.concatenate([np.ones((1, self.images)), drawn]).astype(np.float32) / np.float32(self.images)

    def discrepancy(self, name: str, moments: Moments) -> np.ndarray:
        """(1 + DRAWS,): the mean over a norm's channels of `distance`, first of the images themselves."""
        mean = self._weights @ moments.mean
        variance = self._weights @ moments.square - np.square(mean)
        apart = distance(mean, np.maximum(variance, 0) + np.maximum(moments.epsilon, _SMALLEST))
        apart = np.nan_to_num(apart, nan=_FARTHEST, posinf=_FARTHEST)
        channels = apart.shape[1]
        random = np.random.default_rng([self.seed, *name.encode()])
        drawn = random.integers(0, channels, (DRAWS, channels))
        return np.concatenate([apart[:1].mean(1), np.take_along_axis(apart[1:], drawn, 1).mean(1)])

    def along(self, profile: Profile, names: Sequence[str]) -> np.ndarray:
        """(norms, 1 + DRAWS): of each of these norms."""
        return np.stack([self.discrepancy(name, profile[name]) for name in names])


_SMALLEST = np.float32(1e-12)  # what a variance of 0 counts as where the norm has no epsilon
_FARTHEST = 100.0  # what activations that are NaN or infinite count as
