"""How one tensor follows from another: the simplest relation that holds."""

from itertools import permutations

import ml_dtypes
import numpy as np

from parity.checks.tolerance import relative

CLOSE = 1e-6  # relative: what float32 leaves of a scale or an offset
AXES = 5  # of a tensor whose transposes are tried


def relation(array: np.ndarray, other: np.ndarray) -> str:
    """How `other` follows from `array`, in words: "equal", "B is A transposed by (1, 0)", or their distance."""
    if array.shape == other.shape and np.array_equal(array, other, equal_nan=array.dtype.kind == "f"):
        return "equal" if array.dtype == other.dtype else f"equal values, {array.dtype} and {other.dtype}"
    if array.size != other.size:
        return f"of other sizes: {array.shape} and {other.shape}"
    if array.dtype.kind not in "fV" or other.dtype.kind not in "fV":
        return f"{_count(array, other)} values differ"
    one, two = array.astype(np.float64), other.astype(np.float64)
    for axes in permutations(range(one.ndim)) if one.ndim <= AXES else ():
        if axes != tuple(range(one.ndim)) and np.array_equal(one.transpose(axes), two):
            return f"B is A transposed by {axes}"
    if one.shape != two.shape:
        if np.array_equal(one.ravel(), two.ravel()):
            return f"B is A reshaped from {one.shape} to {two.shape}"
        return f"of other shapes: {array.shape} and {other.shape}"
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            if np.array_equal(one.astype(kind).astype(np.float64), two):
                return f"B is A rounded to {np.dtype(kind).name}"
            if np.array_equal(two.astype(kind).astype(np.float64), one):
                return f"A is B rounded to {np.dtype(kind).name}"
    return _linear(one, two) or _permuted(one, two) or f"relative error {relative(two, one):.1e}"


def _count(array: np.ndarray, other: np.ndarray) -> str:
    if array.shape != other.shape:
        return "shapes and"
    return f"{int((array != other).sum())} of {array.size}"


def _linear(one: np.ndarray, two: np.ndarray) -> str:
    if one.size < 2 or not (np.isfinite(one).all() and np.isfinite(two).all()):
        return ""
    square = float(np.vdot(one, one))
    scale = float(np.vdot(one, two)) / square if square else 0.0
    if scale and abs(scale - 1) > CLOSE and relative(two, scale * one) <= CLOSE:
        return f"B is {scale:.6g} times A"
    offset = float((two - one).mean())
    if offset and relative(two - one, np.full_like(one, offset)) <= CLOSE:
        return f"B is A plus {offset:.6g}"
    return ""


def _permuted(one: np.ndarray, two: np.ndarray) -> str:
    """Along one axis: the same slices in another order."""
    for axis in range(one.ndim):
        rows = [
            np.ascontiguousarray(np.moveaxis(value, axis, 0)).reshape(value.shape[axis], -1) for value in (one, two)
        ]
        ordered = [row[np.lexsort(row.T[::-1])] if row.shape[1] else row for row in rows]
        if len(rows[0]) > 1 and np.array_equal(ordered[0], ordered[1]):
            return f"B is A with its slices along axis {axis} in another order"
    return ""
