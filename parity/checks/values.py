"""The checks that compute nothing: the same values, or values from the same distribution."""

import math
from typing import TYPE_CHECKING

import jax
import numpy as np

from parity.checks.isolation import can_be_taken_apart, flax_and_torch
from parity.checks.pair import Pair
from parity.checks.tolerance import Error, measure
from parity.conversion.convert import as_numpy
from parity.conversion.naming import leaves
from parity.reports.results import Comparison
from parity.sides.base import Arrays

if TYPE_CHECKING:
    import torch

SMALLEST_SAMPLE = 64
CHANCE = 1e-7
"""Of one parameter failing the initialisation check although both sides draw from the same distribution."""


def weights(pair: Pair) -> list[Comparison]:
    """Every parameter, statistic and counter has PyTorch's very value, in memory of its own."""
    tensors, arrays = {}, {}
    if can_be_taken_apart(pair):  # others do not share memory
        candidate, _ = flax_and_torch(pair)
        tensors = {name: tensor.detach().cpu() for name, tensor in pair.given.reference.state_dict().items()}
        arrays = {leaf.torch_name: leaf.value() for leaf in leaves(pair.given.candidate, candidate.names)}
    reference = pair.reference.state()
    rows = []
    for name, value in pair.candidate.state().items():
        if name not in reference:  # a constant
            continue
        error, note = measure(value, reference[name], precision=pair.precision), ""
        if any(_overlap(array, tensors[name]) for array in jax.tree.leaves(arrays.get(name, ()))):
            error, note = Error(math.inf, math.inf, math.inf, 1.0), "shares its memory with PyTorch's tensor: copy it"
        rows.append(Comparison("weights", "", name, error, note=note))
    return rows


def _overlap(array: jax.Array | np.ndarray, tensor: "torch.Tensor") -> bool:
    """Whether an array is a view of a tensor, which PyTorch's updates in place would change."""
    if isinstance(array, np.ndarray):
        return tensor.device.type == "cpu" and np.shares_memory(array, as_numpy(tensor))
    if len(array.devices()) != 1 or next(iter(array.devices())).platform != "cpu":
        return False
    start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    return array.size > 0 and start <= array.unsafe_buffer_pointer() < start + size


def initialization(pair: Pair) -> list[Comparison]:
    """The initial values of two fresh networks come from the same distributions.

    The error is the distance between the two distribution functions (Kolmogorov-Smirnov), or between the shares of
    their tails. Parameters of fewer than 64 values are held to their constant, if PyTorch's have one, and otherwise
    not compared.
    """
    state, reference = pair.candidate.state(), pair.reference.state()
    drawn = [name for name in pair.candidate.parameters if reference[name].size > 1 and np.ptp(reference[name]) > 0]
    alike = all(np.array_equal(state[name], reference[name]) for name in drawn)
    if drawn and alike and pair.candidate.framework != pair.reference.framework:  # which no seed brings about
        pair.warn("initialization: both networks were filled with the same values, which says nothing of fresh ones")
    rows = []
    for name in pair.candidate.parameters:
        values, oracle = state[name], reference[name]
        constant = oracle.size > 1 and np.ptp(oracle) == 0
        if not constant and values.size < SMALLEST_SAMPLE:
            continue
        if constant:
            distance, limit = float(not np.array_equal(values, oracle)), 0.0
        else:
            distance, limit = max(_distances(values, oracle), key=lambda pair: pair[0] / pair[1])
        note = ""
        if distance > limit:
            note = f"{name} starts from {_described(name, state)}, PyTorch's from {_described(name, reference)}"
        error = Error(abs(float(values.std() - oracle.std())), distance, math.nan, math.nan)
        rows.append(Comparison("initialization", "", name, error, tolerance=limit, note=note))
    return rows


def _distances(values: np.ndarray, oracle: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two distances between the distributions of two samples of one size, each with what chance allows."""
    import scipy.stats  # takes a second

    size = values.size
    kolmogorov_smirnov = float(scipy.stats.ks_2samp(values.ravel(), oracle.ravel(), method="asymp").statistic)
    # The share in the tails, for which the first has no eye: a normal distribution cut off has none.
    far = 2.3 * oracle.std()
    shares = [float((np.abs(sample - oracle.mean()) > far).mean()) for sample in (values, oracle)]
    likely = max(sum(shares) / 2, 1 / size)
    deviations = scipy.stats.norm.isf(CHANCE / 2)
    return (
        (kolmogorov_smirnov, math.sqrt(-math.log(CHANCE / 2) / size)),
        (abs(shares[0] - shares[1]), float(deviations * math.sqrt(2 * likely / size))),
    )


def _described(name: str, values: Arrays) -> str:
    """The distribution that a parameter was drawn from, in PyTorch's layout, as far as it is a known one."""
    import scipy.stats  # takes a second

    value = values[name].astype(np.float64)
    if np.ptp(value) == 0:
        return f"{value.flat[0]:g}"
    weight = values.get(f"{name.rpartition('.')[0]}.weight", value)
    receptive = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[min(1, weight.ndim - 1)] * receptive, weight.shape[0] * receptive
    # A normal distribution cut off at two deviations is narrower than its parameter by this factor.
    cut = 0.87962566103423978
    known = {
        "N(0, 2 / fan_out) (Kaiming)": scipy.stats.norm(0, math.sqrt(2 / fan_out)),
        "N(0, 2 / fan_in) (Kaiming)": scipy.stats.norm(0, math.sqrt(2 / fan_in)),
        "a truncated N(0, 1 / fan_in) (LeCun, Flax's default)": scipy.stats.truncnorm(
            -2, 2, 0, math.sqrt(1 / fan_in) / cut
        ),
        "U(+-1 / sqrt(fan_in)) (PyTorch's default)": _uniform(1 / math.sqrt(fan_in)),
        "U(+-sqrt(6 / (fan_in + fan_out))) (Xavier)": _uniform(math.sqrt(6 / (fan_in + fan_out))),
    }
    distances = {words: scipy.stats.ks_1samp(value.ravel(), law.cdf).statistic for words, law in known.items()}
    best = min(distances, key=lambda words: distances[words])
    fits = distances[best] <= math.sqrt(-math.log(CHANCE / 2) / (2 * value.size))
    return best if fits else f"mean {value.mean():.2g}, deviation {value.std():.2g}"


def _uniform(bound: float):
    import scipy.stats  # takes a second

    return scipy.stats.uniform(-bound, 2 * bound)
