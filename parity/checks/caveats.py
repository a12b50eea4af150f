"""What a verdict does not cover: each a warning in the report, so that nothing agrees in silence.

Read from the caller's own networks, whose copies are recast, put in a mode and rid of dropout before they are compared.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.checks.isolation import can_be_taken_apart
from parity.checks.pair import Pair
from parity.conversion.naming import named_modules
from parity.conversion.trees import is_tree
from parity.reports.results import Finding
from parity.sides import dropout
from parity.sides.arguments import batch_size, named_arrays
from parity.sides.base import Side
from parity.sides.flax import FlaxSide
from parity.sides.networks import is_torch

Modules = Mapping[str, Any]
SHOWN = 5


def of_networks(pair: Pair, checks: Collection[str], findings: Sequence[Finding]) -> None:
    """Warns of everything that may differ between the two networks without showing in these checks.

    `findings` are the differences that did show.
    """
    _inputs(pair)
    _zeros(pair)
    ours = _modules(pair, pair.candidate, pair.given.candidate)
    theirs = _modules(pair, pair.oracle, pair.given.reference)
    _dropout(pair, ours, theirs)
    for side, network, modules in zip((pair.candidate, pair.oracle), pair.given, (ours, theirs), strict=True):
        _declared_dtypes(pair, side, network, modules or {})
    if ours and theirs and can_be_taken_apart(pair):
        _hyperparameters(pair, ours, theirs, checks, " ".join(finding.cause for finding in findings))
        _same_padding(pair, ours)


def _modules(pair: Pair, side: Side, network: Any) -> Modules | None:
    """The caller's own modules by PyTorch's paths; None of a network whose modules are not known."""
    if is_torch(network):
        return dict(network.named_modules())
    if not isinstance(side, FlaxSide) or not isinstance(network, nnx.Module) or is_tree(network):
        return None
    modules: dict[str, Any] = {}
    for path, module in ((side.torch_path(path), module) for path, module in named_modules(network)):
        if path in modules and modules[path] is not module:
            pair.note(f"two submodules of the {side.framework} network meet PyTorch's {path}; their calls are compared "
                      "in order")  # fmt: skip
        modules.setdefault(path, module)
    return modules


def _listed(items: Collection[str]) -> str:
    """The first few of them."""
    items = list(items)
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def _inputs(pair: Pair) -> None:
    inputs = named_arrays(pair.inputs.candidate)
    for name, array in inputs.items():
        if array.size > 1 and array.dtype.kind in "fc" and (array == array.flat[0]).all():
            which = f"the input {name}" if name else "the inputs"
            pair.warn(
                f"every value of {which} is {array.flat[0]:g}: what depends on where a value lies does not show; "
                "parity.random_inputs(shape) hides nothing"
            )
    if batch_size(pair.inputs.candidate) == 1:
        pair.warn("a batch of one: what mixes the examples of a batch, or confuses its axis, does not show")


def _dropout(pair: Pair, ours: Modules | None, theirs: Modules | None) -> None:
    """Rates of dropout and stochastic depth, which are off on both sides."""
    names = (pair.candidate.framework, pair.oracle.framework)
    rates = [
        {path: sorted(filter(None, dropout.rates(module).values())) for path, module in (side or {}).items()}
        for side in (ours, theirs)
    ]
    if ours is None or theirs is None:
        known = names[ours is None]
        if seen := [f"{path} {_rates(side[path])}" for side in rates for path in side if side[path]]:
            unknown = names[ours is not None]
            pair.warn(
                f"dropout is off in every pass, and its rates were not compared with those of {unknown}, which are not "
                f"known: {_listed(seen)} in {known}"
            )
        return
    different = [
        f"{path} {_rates(rates[0].get(path))} in {names[0]} and {_rates(rates[1].get(path))} in {names[1]}"
        for path in dict.fromkeys((*rates[1], *rates[0]))
        if (rates[0].get(path) or []) != (rates[1].get(path) or [])
    ]
    if different:
        pair.warn(f"dropout is off in every pass, and its rates differ: {_listed(different)}")


def _rates(rates: list[float] | None) -> str:
    return ", ".join(f"{rate:g}" for rate in rates) if rates else "none"


def _declared_dtypes(pair: Pair, side: Side, network: Any, modules: Modules) -> None:
    """Low precision that a network asks for and the check computes without."""
    wide = {"float32", "float64", "complex64", "complex128"} | ({"bfloat16"} if pair.precision == "bfloat16" else set())
    if is_torch(network):
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in network.state_dict().items()
                  if tensor.is_floating_point() or tensor.is_complex()}  # fmt: skip
        by = ""
    else:
        dtypes = {path or "the network": str(jnp.dtype(module.dtype)) for path, module in modules.items()
                  if getattr(module, "dtype", None) is not None and _is_dtype(module.dtype)}  # fmt: skip
        by = " by dtype="
    if low := {path: dtype for path, dtype in dtypes.items() if dtype not in wide}:
        verb = ("is" if len(low) == 1 else "are") if not by else ("computes in" if len(low) == 1 else "compute in")
        kinds = ", ".join(sorted(set(low.values())))
        pair.warn(f"{side.framework}'s {_listed(low)} {verb} {kinds}{by}; the check computes in {pair.precision}")


def _is_dtype(value: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.inexact)
    except TypeError:
        return False


def _zeros(pair: Pair) -> None:
    """Parameters that switch off what comes before them: a last gamma of zero hides a whole branch."""
    state = pair.oracle.state()
    zero = [
        name
        for name in pair.oracle.parameters
        if name in state  # a recording may hold digests only
        and not name.rpartition(".")[2].endswith("bias")
        and state[name].size
        and not state[name].any()
    ]
    if zero:
        pair.warn(
            f"{_listed(zero)} {'is' if len(zero) == 1 else 'are'} zero: what is multiplied by it does not show in the "
            "output; parity.randomize fills both networks with values that hide nothing"
        )


def _hyperparameters(pair: Pair, ours: Modules, theirs: Modules, checks: Collection[str], found: str) -> None:
    """Settings of the norms that differ although nothing that was run depends on them, or shows it.

    What is `found` to be the cause in one layer may be in the others, too: a cause is given for some of them only.
    """
    trains = pair.wanted_modes is None or "train" in pair.wanted_modes
    exercised = trains and bool({"batch_stats", "optimizer", "trajectory"} & set(checks))
    different, unread = [], []
    for path, module in theirs.items():
        mine, where = ours.get(path), path or "the network"
        if mine is None:
            continue
        eps, epsilon = getattr(module, "eps", None), getattr(mine, "epsilon", None)
        is_other = _is_number(eps) and _is_number(epsilon) and not np.isclose(epsilon, eps, rtol=1e-6, atol=0)
        if is_other and f"is {epsilon:g}, PyTorch's is {eps:g}" not in found:
            different.append(f"epsilon of {where} is {epsilon:g}, PyTorch's {eps:g}")
        if exercised or getattr(module, "running_mean", None) is None:
            continue
        if not isinstance(mine, nnx.BatchNorm):  # whose momentum may mean either
            unread.append(where)
        elif module.momentum is None or not np.isclose(mine.momentum, 1 - module.momentum, rtol=1e-6, atol=0):
            theirs_is = (
                "None" if module.momentum is None else f"{module.momentum:g}, which is {1 - module.momentum:g} here"
            )
            different.append(f"momentum of {where} is {mine.momentum:g}, PyTorch's {theirs_is}")
    if different:
        pair.warn(f"settings differ that made no difference here: {_listed(different)}")
    if unread:
        pair.warn(f"how {_listed(unread)} updates its statistics was not exercised: batch_stats does it")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_padding(pair: Pair, ours: Modules) -> None:
    """Strided layers whose padding SAME is symmetric at the sizes of these inputs only."""
    strided = {
        path: module
        for path, module in ours.items()
        if isinstance(getattr(module, "padding", None), str)
        and module.padding.upper() == "SAME"
        and any(stride > 1 for stride in _tuple(getattr(module, "strides", 1)))
        and hasattr(module, "kernel_size")
    }
    if not strided or not isinstance(pair.candidate, FlaxSide):
        return
    shapes = pair.candidate.submodule_input_shapes(pair.inputs.candidate)
    hidden = [
        path
        for path, module in strided.items()
        if path in shapes and all(_is_symmetric(*axis) for axis in _axes(module, shapes[path]))
        and not all(_is_symmetric(size + 1, *others) for size, *others in _axes(module, shapes[path]))
    ]  # fmt: skip
    if hidden:
        pair.warn(
            f"{_listed(hidden)} {'has' if len(hidden) == 1 else 'have'} a stride and padding SAME, which pads both "
            "sides alike at this size of the inputs, but not at every size: check another one, even where this is odd"
        )


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value or 1,)


def _axes(module: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(size, window, stride) of each spatial axis of a layer's input (N, ..., C)."""
    window = _tuple(module.kernel_size)
    strides = _tuple(module.strides)
    strides = strides * len(window) if len(strides) == 1 else strides
    yield from zip(shape[-1 - len(window) : -1], window, strides, strict=True)


def _is_symmetric(size: int, window: int, stride: int) -> bool:
    return max((-(-size // stride) - 1) * stride + window - size, 0) % 2 == 0
