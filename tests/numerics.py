"""How far a result may be from the exact one, by rules that hold on any processor.

No tolerance rests on what one machine happened to round. It is one of two:

- a noise floor, as `parity` takes it: the largest error that the reference itself makes, in the precision under test,
  over several arrangements of the same computation, times the documented `k` of `parity.checks.tolerance.PROFILES`;
- where a result is a few sums and products, the bound on their rounding errors in any order: `gamma`.

Comparisons in float64 of what is computed in two ways allow 1e-12 of the values, or a little more: thousands of
roundings, where the sums have hundreds of terms, and a hundred-thousandth of a single rounding to float32.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.checks.tolerance import PROFILES, Noise, relative

TENSORS = "tensors"


def torch_noise(module: Any, inputs: np.ndarray, names: Collection[str], precision: str = "float32") -> Noise:
    """The oracle and floors of a PyTorch network in eval mode, images channels last.

    Args:
        inputs: (N, H, W, C), or without spatial axes as PyTorch takes them.
        names: submodules whose outputs to keep, by path; the network's own is "output".
    """
    from parity.sides.base import ARRANGEMENTS  # they import torch, which not every test needs
    from parity.sides.torch import TorchSide

    images = np.moveaxis(inputs, -1, 1) if np.ndim(inputs) >= 4 else np.asarray(inputs)

    def tensors(side, **options):
        run = side.run(images, train=False, **options)
        outputs = run.activations | run.outputs
        return {TENSORS: {name: _channels_last(outputs[name]) for name in names}}

    noise = Noise(tensors(TorchSide(module, "float64")))
    narrow = TorchSide(module, precision)
    for arrangement in ARRANGEMENTS:
        noise.add(tensors(narrow, arrangement=arrangement))
    return noise


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim > 3 else array


def assert_close_to_torch(
    ours: Mapping[str, Any], module: Any, inputs: np.ndarray, precision: str = "float32"
) -> dict[str, tuple[float, float]]:
    """Asserts that each of `ours`, {PyTorch path or "output": array}, is within k floors of PyTorch in float64.

    Returns:
        {name: (our relative error, PyTorch's floor)}.
    """
    return assert_within(ours, torch_noise(module, inputs, ours, precision), precision)


def assert_within(
    ours: Mapping[str, Any], noise: Noise, precision: str = "float32", *, alone: bool = False
) -> dict[str, tuple[float, float]]:
    """Asserts that arrays are within k floors of the oracle; `alone` if they come from one layer, not a network."""
    oracle, floors = noise.oracle[TENSORS], noise.floors[TENSORS]
    errors = {name: (relative(array, oracle[name]), floors[name]) for name, array in ours.items()}
    far = [n for n, (error, floor) in errors.items() if not error <= tolerance(floor, precision, alone=alone)]
    assert not far, f"{', '.join(far)}: (error, floor) are {errors}"
    return errors


def tolerance(floor: float, precision: str = "float32", *, alone: bool = False) -> float:
    """How large a relative error may be, given the floor of the reference."""
    profile = PROFILES[precision]
    return max(profile.k * floor, profile.least_alone if alone else profile.least)


def assert_as_exact_as(ours: Any, reference: Callable, *arguments: Any, precision: str = "float32") -> None:
    """Asserts that a tree of arrays is within k floors of a JAX function, computed in float64.

    The floors are `reference`'s own in `precision`: with the arguments (arrays, or trees of them) as they are, with
    each value moved by one unit in the last place, and with the first argument, and whatever is returned for each of
    its rows, in another order along the first axis. For bfloat16 only the order changes, since a move would be larger
    than what is rounded.
    """
    with jax.enable_x64(True):
        oracle = _numbered(reference(*jax.tree.map(lambda array: _cast(array, np.float64), arguments)))
    noise = Noise({TENSORS: oracle})
    dtype = jnp.dtype(precision)
    for arranged, back in _arrangements(jax.tree.map(np.asarray, arguments), moved=precision != "bfloat16"):
        result = _numbered(reference(*jax.tree.map(lambda array: _cast(array, dtype), arranged)))
        noise.add({TENSORS: {name: _in_order(array, back) for name, array in result.items()}})
    assert_within(_numbered(ours), noise, precision, alone=True)


def _arrangements(arguments: tuple, *, moved: bool) -> Iterable[tuple[tuple, np.ndarray]]:
    """Each with the order that undoes its own."""
    count = len(jax.tree.leaves(arguments[0])[0])
    for seed in (None, 0, 1, 2):
        rng = np.random.default_rng(seed)
        order = np.arange(count) if seed is None else rng.permutation(count)
        arranged = jax.tree.map(lambda array, order=order: array[order], arguments[0]), *arguments[1:]
        if moved and seed is not None:
            arranged = jax.tree.map(lambda array, rng=rng: _nudged(array, rng), arranged)
        yield arranged, np.argsort(order)


def _in_order(array: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Rows of the first argument's as they were; a result that only happens to have as many must not be given."""
    return array[back] if len(array) == len(back) else array


def _nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype != np.float32:
        return array
    return np.nextafter(array, np.where(rng.random(array.shape) < 0.5, np.inf, -np.inf).astype(np.float32))


def _cast(array: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(array, dtype if jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating) else None)


def _numbered(tree: Any) -> dict[str, np.ndarray]:
    leaves = (np.atleast_1d(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree))
    return {str(number): leaf for number, leaf in enumerate(leaves)}


def gamma(operations: int, dtype: Any = np.float32) -> float:
    """The relative error bound of `operations` roundings in a row, n u / (1 - n u).

    A sum of n products, in any order, fused or not, is off by at most gamma(n) times the sum of their absolute values
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    """
    roundings = operations * float(jnp.finfo(dtype).eps) / 2
    return roundings / (1 - roundings)


def assert_rounded(actual: Any, exact: Any, operations: int, size: Any = None, dtype: Any = np.float32) -> None:
    """Asserts that each value is off by no more than `operations` roundings in `dtype` of something of this `size`.

    Args:
        exact: in float64; or rounded itself, and then its operations count too.
        size: the sum of the absolute values of what was added up; by default that of the exact value.
    """
    actual = np.asarray(actual, np.float64)
    exact = np.broadcast_to(np.asarray(exact, np.float64), actual.shape)
    bound = gamma(operations, dtype) * np.abs(exact if size is None else np.asarray(size, np.float64))
    excess = np.abs(actual - exact) - bound
    assert (excess <= 0).all(), f"off by {np.abs(actual - exact).max():.3g}, up to {excess.max():.3g} too much"


def assert_rounded_once(actual: Any, exact: Any, operations: int, size: Any, dtype: Any) -> None:
    """As `assert_rounded` with so many roundings in float32 of something of this size, and one more to `dtype`."""
    exact = np.asarray(exact, np.float64)
    assert_rounded(actual, exact, 1, np.abs(exact) + gamma(operations) / gamma(1, dtype) * np.asarray(size), dtype)


def assert_normalized(ours: Any, images: np.ndarray, mean: Any, std: Any, dtype: Any = np.float32) -> None:
    """Asserts that uint8 images became (x / 255 - mean) / std, computed in float32 and rounded to `dtype`.

    Seven roundings: of mean and std, of each of the three operations, and a division may be two, with a reciprocal.
    """
    x, mean, std = (np.asarray(array, np.float64) for array in (images / 255.0, mean, std))
    exact = (x - mean) / std
    assert_rounded_once(ours, exact, 7, (x + np.abs(mean)) / std, dtype)
