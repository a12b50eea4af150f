"""How far two tensors are apart, and how far they may be.

The oracle is PyTorch in float64. The floor of a tensor is the largest error of PyTorch itself, in the precision under
test, over several arrangements of the same computation that round differently. A tensor of ours may be `k` floors away.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MASK = 1e8  # from this size on a value counts as a mask's, such as -1e9 or the smallest float32
SMALL_MASK, BESIDE_MASK = 1e3, 100.0
"""From the former size on, one value counts as a mask's too where everything else is so many times smaller."""

Groups = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Profile:
    """What a precision allows.

    Attributes:
        dtype: of the computation.
        k: how many floors an error may be. The floor is the largest of a handful of samples of rounding noise and ours
            is one more sample, from other kernels; k leaves room for that and for no fault.
        least: the smallest tolerance, where PyTorch's own arrangements happen to agree exactly.
        least_alone: the same for a layer on its own, whose input carries no earlier errors.
        share: the size below which a part of something larger counts as this large, as a share of the whole: the
            rounding of the whole reaches its parts. It keeps a large tensor from hiding a small one beside it.
        least_gradient: the same for gradients. In low precision a value near zero can have another sign on the other
            side of a ReLU, or another pixel be the maximum, and all gradients before it change at once; whether that
            happens is chance, in PyTorch's arrangements as in ours (seen: 1,000 times the floor of five arrangements).
            Use float64 to find faults in gradients.
        most: the largest noise floor considered reliable. A larger one is not rounding: PyTorch disagrees with itself,
            because dropout is called as a function, or the first axis is not the batch.
    """

    dtype: str
    k: float
    least: float
    least_alone: float
    least_gradient: float
    most: float
    share: float = 1.0


# With 1e-4, float64 allows a small part 1e-10 * 1e-4 of the whole: 45 units in the last place of the large values that
# it is computed beside.
PROFILES = {
    "float64": Profile("float64", k=8.0, least=1e-10, least_alone=1e-10, least_gradient=1e-10, most=1e-6, share=1e-4),
    "float32": Profile("float32", k=8.0, least=8 * 2.0**-23, least_alone=8 * 2.0**-23, least_gradient=1e-2, most=3e-2),
    "bfloat16": Profile("bfloat16", k=2.0, least=2.0**-8, least_alone=2.0**-10, least_gradient=2e-1, most=3e-1),
}


@dataclass(frozen=True)
class Error:
    """The distance of a tensor from the oracle's.

    Attributes:
        max_abs: the largest absolute difference.
        relative: the L2 norm of the difference over that of the oracle, or over a larger scale where one is given.
        ulp: `max_abs` in units of the last place that the precision has at the oracle's largest value.
        cosine: of the angle between the two.
    """

    max_abs: float
    relative: float
    ulp: float
    cosine: float


def measure(
    actual: np.ndarray, oracle: np.ndarray, *, scale: float = 0.0, share: float = 1.0, precision: str = "float64"
) -> Error:
    """The error of `actual` against `oracle`, which has the same shape; NaN anywhere makes every figure NaN.

    Values of a mask that are equal on both sides are ignored, since next to them nothing else would count: infinite
    ones, those of `MASK` and larger, and the largest value of `SMALL_MASK` and larger where everything else is smaller
    by `BESIDE_MASK`.

    Args:
        scale: a root-mean-square size below which values count as this large. For gradients it is that of the model's
            whole gradient: a convolution's bias in front of a BatchNorm has a true gradient of zero, and what either
            framework computes there is rounding.
        share: see `relative`.
    """
    expected, actual = Expected(oracle), _real(actual)
    distance = relative(actual, expected, scale, share)
    ours, theirs = expected.unmasked(actual)
    if not ours.size:
        return Error(0.0, 0.0, 0.0, 1.0)
    max_abs = float(np.abs(ours - theirs).max())
    norms = _norm(ours) * _norm(theirs)
    return Error(
        max_abs=max_abs,
        relative=distance,
        ulp=max_abs / _spacing(_largest(theirs), precision),
        cosine=float(np.vdot(ours, theirs)) / norms if norms else float(max_abs == 0),
    )


class Expected:
    """An oracle's tensor with what every distance from it needs, computed once."""

    def __init__(self, array: np.ndarray):
        self.array = _real(array)

    @cached_property
    def largest(self) -> float:
        """The largest absolute value; 0 if there is none."""
        return _largest(self.array) if self.array.size else 0.0

    @cached_property
    def norm(self) -> float:
        return _norm(self.array)

    @property
    def has_mask(self) -> bool:
        """Whether any value may be a mask's."""
        return self.largest >= SMALL_MASK

    def unmasked(self, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both without the values of a mask that are equal."""
        return _unmasked(actual, self.array) if self.has_mask else (actual, self.array)


def relative(actual: np.ndarray, oracle: np.ndarray | Expected, scale: float = 0.0, share: float = 1.0) -> float:
    """`measure(...).relative` alone.

    Args:
        share: below 1, the largest of the errors of each channel alone too (the second of four axes and more, else the
            last), none of which counts as smaller than this share of the whole.
    """
    expected = oracle if isinstance(oracle, Expected) else Expected(oracle)
    actual, array = _real(actual), expected.array
    ours, theirs = expected.unmasked(actual)
    whole, small = _relative(ours, theirs, scale, None if expected.has_mask else expected.norm), 0.0
    if share < 1 and actual.ndim >= 2 and not whole > 1:
        axis = 1 if array.ndim >= 4 else array.ndim - 1
        least = share * rms([expected.unmasked(array)[1]])
        small = _worst_channel(np.moveaxis(actual, axis, 0), np.moveaxis(array, axis, 0), least, expected.has_mask)
    return float(np.maximum(whole, small))  # NaN stays NaN


def _worst_channel(actual: np.ndarray, oracle: np.ndarray, least: float, has_mask: bool) -> float:
    """The largest error along the first axis; all at once where there can be no mask, which is sought in each."""
    if not oracle.size:
        return 0.0
    if has_mask:
        return max(_relative(*_unmasked(ours, theirs), least) for ours, theirs in zip(actual, oracle, strict=True))
    ours, theirs = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (actual, oracle))
    distances = np.linalg.norm(ours - theirs, axis=1)
    sizes = np.maximum(np.linalg.norm(theirs, axis=1), least * math.sqrt(theirs.shape[1]))
    errors = np.divide(distances, sizes, out=np.where(distances, np.inf, distances), where=sizes != 0)
    return float(errors.max())


def _relative(actual: np.ndarray, oracle: np.ndarray, scale: float, norm: float | None = None) -> float:
    """The relative error.

    Args:
        norm: that of the oracle, if it is known.
    """
    distance = _norm(np.subtract(actual, oracle, dtype=np.float64))
    size = max(_norm(oracle) if norm is None else norm, scale * math.sqrt(np.size(oracle)))
    return distance / size if size else (math.inf if distance else distance)


def _real(array: np.ndarray) -> np.ndarray:
    """Complex values as pairs, in a new first axis, so that the others keep their meaning."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        return np.concatenate([array.real, array.imag], 0) if array.ndim else np.stack([array.real, array.imag])
    return array


def _unmasked(actual: np.ndarray, oracle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the values of a mask that are equal."""
    actual, oracle = np.asarray(actual), np.asarray(oracle)
    if not oracle.size:
        return actual, oracle
    largest = _largest(oracle)
    if not largest >= SMALL_MASK:  # NaN is none
        return actual, oracle
    sizes = np.abs(oracle)
    if largest >= MASK:
        counts = ~((actual == oracle) & (sizes >= MASK))
    else:
        counts = ~((actual == oracle) & (sizes == largest))
        if not counts.any() or sizes[counts].max() * BESIDE_MASK > largest:
            return actual, oracle
    return actual[counts], oracle[counts]


def _largest(array: np.ndarray) -> float:
    """The largest absolute value, without an array of them where they are floats."""
    return float(max(array.max(), -array.min()) if array.dtype.kind == "f" else np.abs(array).max())


def _norm(array: np.ndarray) -> float:
    """The L2 norm; not by BLAS, whose threads wait for each other at a length that is a matter of memory alone."""
    flat = np.asarray(array, np.float64).ravel(order="K")
    return math.sqrt(np.einsum("i,i->", flat, flat))


class Noise:
    """The noise floors of groups of tensors, {group: {name: array}}, from PyTorch's arrangements, one after another.

    Only each arrangement's distances from the oracle are kept: a large network's gradients are gigabytes.

    Attributes:
        oracle: the groups in float64.
        scales: {group: size below which its values count as this large}, see `measure`.
        floors: {group: {name: largest relative error so far}}.
    """

    def __init__(self, oracle: Groups, *, scaled: Collection[str] = (), share: float = 1.0):
        """The groups in `scaled` are gradients and their like: measured against a share of the group as a whole.

        Outputs are measured channel by channel, see `relative`.
        """
        self.oracle = oracle
        self._expected = {
            group: {name: Expected(array) for name, array in arrays.items()} for group, arrays in oracle.items()
        }
        self.scales = {group: share * rms(arrays.values()) for group, arrays in oracle.items() if group in scaled}
        self.shares = {"outputs": share}
        self.floors = {group: dict.fromkeys(arrays, 0.0) for group, arrays in oracle.items()}

    def add(self, arranged: Groups) -> None:
        self.add_floors(self.distances(arranged))

    def distances(self, arranged: Groups) -> dict[str, dict[str, float]]:
        """{group: {name: relative error}} of one arrangement."""
        return {
            group: {name: self.distance(group, arranged[group][name], array) for name, array in arrays.items()}
            for group, arrays in self._expected.items()
        }

    def add_floors(self, floors: Mapping[str, Mapping[str, float]]) -> None:
        """Takes floors that were measured elsewhere, where they are larger; NaN stays NaN."""
        for group, values in floors.items():
            for name, floor in values.items():
                if name in self.floors.get(group, {}):
                    self.floors[group][name] = float(np.maximum(self.floors[group][name], floor))

    def distance(self, group: str, actual: np.ndarray, oracle: np.ndarray | Expected) -> float:
        """The relative error of a tensor of this group."""
        return relative(actual, oracle, self.scales.get(group, 0.0), self.shares.get(group, 1.0))


def rms(tensors: Iterable[np.ndarray]) -> float:
    """The root mean square over all values of all tensors: the scale of a model's gradient."""
    tensors = [np.asarray(_real(tensor), np.float64) for tensor in tensors]
    count = sum(tensor.size for tensor in tensors)
    return float(np.sqrt(sum(np.square(tensor).sum() for tensor in tensors) / count)) if count else 0.0


def agreement(actual: np.ndarray, oracle: np.ndarray, k: int) -> float:
    """The share of rows (..., classes) whose largest `k` logits are the same set."""
    classes = oracle.shape[-1]
    top = lambda logits: np.sort(np.argsort(logits.reshape(-1, classes), axis=1)[:, -k:], axis=1)  # noqa: E731
    return float((top(actual) == top(oracle)).all(axis=1).mean())


_MANTISSA_BITS = {"float64": 52, "float32": 23, "bfloat16": 7}


def _spacing(value: float, precision: str) -> float:
    exponent = np.floor(np.log2(value)) if value > 0 and np.isfinite(value) else -126.0
    return float(2.0 ** (exponent - _MANTISSA_BITS[precision]))
