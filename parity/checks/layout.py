"""Whether two tensors are the same values in another layout or shape."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from parity.checks.tolerance import Noise
from parity.sides.base import INPUTS


def layouts(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """The array with its axes in every order, as it is first, reshaped where that is needed to give `shape`.

    Yields what was done, in words, "" for nothing; nothing at all for an array of another size or of more than five
    axes, of which there are too many orders.
    """
    if array.size != math.prod(shape) or array.ndim > 5:
        return
    for order in itertools.permutations(range(array.ndim)):
        turned = array.transpose(order)
        words = [] if order == tuple(sorted(order)) else [f"with its axes in the order {order}"]
        if turned.shape != shape:
            words += [f"reshaped from {turned.shape} to {shape}"]
        yield ", ".join(words), turned.reshape(shape)


def in_agreeing_layout(
    group: str, name: str, array: np.ndarray, noise: Noise, tolerance: float, channels: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """The array in the layout in which it agrees with the oracle's, if there is one, and what that took.

    What lies inside a network may have another layout and shape. Of outputs and inputs only the place of the channels
    is open, where square axes leave it so.

    Args:
        channels: their axis in the array as it was and in the oracle's, between which it has been moved.
    """
    oracle = noise.oracle[group][name]
    is_inside = group in ("activations", "activation_gradients")
    if not is_inside and group != "outputs" and not name.startswith(INPUTS):
        return array, ""
    if array.shape == oracle.shape and noise.distance(group, array, oracle) <= tolerance:
        return array, ""
    found: Iterator[tuple[str, np.ndarray]] = iter(())
    if is_inside:
        found = layouts(array, oracle.shape)
    elif array.ndim >= 4 and array.shape == oracle.shape and channels[0] != channels[1]:
        as_it_lies = np.moveaxis(array, channels[1], channels[0])
        found = iter([("as it lies: its square axes leave open which are the channels", as_it_lies)])
    for words, candidate in found:
        if candidate.shape == oracle.shape and noise.distance(group, candidate, oracle) <= tolerance:
            return candidate, words
    return array, ""
