"""How two tensors are related, where no cause is known: a description of what is there, not a claim why."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from parity.checks.tolerance import relative

EXACT = 1e-3
"""A relation holds if it takes away all but this share of the difference."""


def described(ours: np.ndarray, theirs: np.ndarray, limit: float) -> str:
    """The simplest relation between two tensors; "" if there is none to be seen.

    Args:
        ours, theirs: of one layout, theirs (N, C, ...) or (N, ..., features).
        limit: the relative error that counts as agreement.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        same = ours.size == theirs.size
        return f"the shape is {ours.shape}, PyTorch's {theirs.shape}" + (
            " with the same values in order" if same and relative(ours.ravel(), theirs.ravel()) <= limit else ""
        )
    if not ours.size or not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return ""
    allowed = max(limit, EXACT * relative(ours, theirs))
    for words, other in _relations(ours, theirs):
        if other.shape == ours.shape and relative(ours, other) <= allowed:
            return words
    return "; ".join(words for words in (_place(ours, theirs, limit), _size(ours, theirs)) if words)


def _relations(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if not np.any(ours):
        yield "all values are zero", np.zeros_like(ours)
    square = float(np.vdot(theirs, theirs))
    if square:
        factor = float(np.vdot(theirs, ours)) / square
        yield f"every value is {factor:.6g} times PyTorch's", factor * theirs
    offset = float((ours - theirs).mean())
    yield f"every value is PyTorch's plus {offset:.6g}", theirs + offset
    if ours.size > 2:
        slope, intercept = np.polyfit(theirs.ravel(), ours.ravel(), 1)
        yield f"every value is {slope:.6g} times PyTorch's plus {intercept:.6g}", slope * theirs + intercept
    yield "the values are the absolute values of PyTorch's", np.abs(theirs)
    for axis in range(ours.ndim):
        if ours.shape[axis] > 1:
            yield f"axis {axis} is reversed", np.flip(theirs, axis)
            for shift in (1, -1):
                yield f"axis {axis} is shifted by {shift}", np.roll(theirs, shift, axis)
                yield f"axis {axis} is shifted by {shift}, with zeros moved in", _shifted(theirs, shift, axis)
    if ours.ndim <= 4:
        for order in permutations(range(ours.ndim)):
            if order != tuple(range(ours.ndim)):
                turned = theirs.transpose(order)
                yield f"PyTorch's axes are in the order {order}", turned
                if turned.shape != theirs.shape:
                    yield f"PyTorch's axes are in the order {order}, then reshaped", turned.reshape(theirs.shape)
    for axis in range(ours.ndim):
        if order := _permutation(ours, theirs, axis):
            yield f"axis {axis} is permuted: it takes PyTorch's {_short(order)}", np.take(theirs, order, axis)


def _shifted(array: np.ndarray, shift: int, axis: int) -> np.ndarray:
    moved = np.roll(array, shift, axis)
    edge = [slice(None)] * array.ndim
    edge[axis] = slice(0, shift) if shift > 0 else slice(shift, None)
    moved[tuple(edge)] = 0
    return moved


def _permutation(ours: np.ndarray, theirs: np.ndarray, axis: int) -> list[int]:
    """The order along an axis in which both are the same; [] if there is none."""
    count = ours.shape[axis]
    if not 1 < count <= 256:
        return []
    mine, others = (np.moveaxis(array, axis, 0).reshape(count, -1) for array in (ours, theirs))
    distances = np.linalg.norm(mine[:, None] - others[None], axis=-1)
    order = distances.argmin(1).tolist()
    return order if len(set(order)) == count and order != list(range(count)) else []


def _place(ours: np.ndarray, theirs: np.ndarray, limit: float) -> str:
    """Where in the tensor the difference is, if it is in one place only."""
    wrong = np.abs(ours - theirs) > limit * np.sqrt(np.square(theirs).mean())
    if not wrong.any() or wrong.all():
        return ""
    names = {0: "sample", 1: "channel"} if ours.ndim >= 4 else {0: "sample", ours.ndim - 1: "feature"}
    places = []
    for axis in range(ours.ndim):
        where = np.flatnonzero(wrong.any(tuple(other for other in range(ours.ndim) if other != axis)))
        size, name = ours.shape[axis], names.get(axis, "position")
        along = "" if axis in names else f" along axis {axis}"
        if len(where) == size:
            continue
        if len(where) == 1:
            last = ", the last" if where[0] == size - 1 else ", the first" if where[0] == 0 else ""
            places.append(f"in {name} {where[0]} of {size}{along}{last}")
        elif set(where) <= {0, size - 1}:
            places.append(f"at both ends of axis {axis}")
        else:
            places.append(f"in {len(where)} of {size} {name}s{along}: {_short(where.tolist())}")
    if places:
        return f"the difference is only {' and '.join(places)}"
    if ours.ndim >= 4 and not wrong[(slice(None), slice(None), *[slice(1, -1)] * (ours.ndim - 2))].any():
        return "the difference is only at the borders"
    signs = {"positive": theirs > 0, "negative": theirs < 0}
    for words, mask in signs.items():
        if mask.any() and not mask.all() and not wrong[~mask].any():
            return f"the difference is only where PyTorch's values are {words}"
    return f"{wrong.mean():.0%} of the values differ"


def _size(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Differences of the size that another type's rounding has, and as much up as down, as rounding is."""
    error, difference = relative(ours, theirs), ours - theirs
    if abs(difference.sum()) > 2 * np.linalg.norm(difference):  # two standard deviations of a sum of independent ones
        return ""
    for name, unit in (("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)):
        if unit / 16 <= error <= unit * 16:
            return f"the difference has the size of {name}'s rounding ({unit:.0e})"
    return ""


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (", ..." if len(numbers) > 8 else "")
