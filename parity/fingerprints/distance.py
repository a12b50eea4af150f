"""How far what the norms were given is from what they were trained with, and how sure that is."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from parity.fingerprints.moments import Moments

DRAWS = 200


def distance(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Between the normal distribution of this mean and variance and the standard one, elementwise.

    It is Fisher and Rao's (Atkinson & Mitchell, Sankhya A 43, 1981), times sqrt(2): |log variance| where the mean is 0,
    sqrt(2) |mean| for a small mean and variance 1, and the logarithm of either where it is far off.
    """
    scale = np.sqrt(variance)
    apart = (np.square(mean) / 2 + np.square(scale - 1)) / (2 * scale)
    return 2 * np.log1p(apart + np.sqrt(apart * (apart + 2)))  # arccosh(1 + apart), which in float32 would be 1


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
    _channels: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _weights(self) -> np.ndarray:
        """(1 + DRAWS, images): first the images themselves, then as often as each was drawn."""
        drawn = np.random.default_rng(self.seed).multinomial(self.images, [1 / self.images] * self.images, DRAWS)
        return np.concatenate([np.ones((1, self.images)), drawn]).astype(np.float32) / np.float32(self.images)

    def discrepancy(self, name: str, moments: Moments) -> np.ndarray:
        """(1 + DRAWS,): the mean over a norm's channels of `distance`, first of the images themselves."""
        apart = distance(*_parameters(moments, self._weights))
        apart = np.nan_to_num(apart, nan=_FARTHEST, posinf=_FARTHEST)
        return np.concatenate([apart[:1].mean(1), apart.take(self._drawn(name, apart.shape[1])).mean(1)])

    def _drawn(self, name: str, channels: int) -> np.ndarray:
        """int32 (DRAWS, channels): where in (1 + DRAWS, channels) the channels of each draw are."""
        if name not in self._channels:
            random = np.random.default_rng([self.seed, *name.encode()])
            drawn = random.integers(0, channels, (DRAWS, channels), np.int32)
            self._channels[name] = drawn + channels * np.arange(1, DRAWS + 1, dtype=np.int32)[:, None]
        return self._channels[name]


def change(one: Moments, other: Moments) -> float:
    """The mean over a norm's channels of the distance between what two candidates give it, on all images."""
    (mean, variance), (its_mean, its_variance) = (_parameters(moments) for moments in (one, other))
    apart = distance((mean - its_mean) / np.sqrt(its_variance), variance / its_variance)
    return float(np.nan_to_num(apart, nan=_FARTHEST, posinf=_FARTHEST).mean())


def _parameters(moments: Moments, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over images that have these weights, or all the same one."""
    if weights is None:
        mean, square = moments.mean.mean(0), moments.square.mean(0)
    else:
        mean, square = weights @ moments.mean, weights @ moments.square
    return mean, np.maximum(square - np.square(mean), 0) + np.maximum(moments.epsilon, _SMALLEST)


_SMALLEST = np.float32(1e-12)  # what a variance of 0 counts as where the norm has no epsilon
_FARTHEST = 100.0  # what activations that are NaN or infinite count as
