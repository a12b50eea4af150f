"""Moving averages of the weights: the same average after each update, and by which decay."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.checks.tolerance import PROFILES, measure
from parity.conversion.convert import as_numpy
from parity.errors import ParityError
from parity.reports.results import Comparison, Finding, Report
from parity.sides.base import Arrays

Update = Callable[[dict[str, Any], dict[str, Any], int], Mapping[str, Any]]
"""(averages, values, update counted from 0) -> averages: dicts of float64 arrays by PyTorch's names."""


def check_average(update: Update, averaged: torch.optim.swa_utils.AveragedModel, *, steps: int = 5) -> Report:
    """Compares a moving average of weights with PyTorch's, from PyTorch's state before each update.

    Args:
        update: (averages, values, update counted from 0) -> averages, on dicts of arrays by PyTorch's names: the
            parameters, and the statistics too where `averaged` has use_buffers.
        averaged: as it would be used, before or after any number of updates; it is left as it is.
        steps: updates, each with new random values.

    Raises:
        ParityError: if `update` gives other names or shapes.

    Examples:
        >>> import optax, parity, torch
        >>> from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
        >>> def update(average, weights, step):  # PyTorch's first update copies the weights
        ...     return optax.incremental_update(weights, average, 1.0 if step == 0 else 0.01)
        >>> parity.check_average(update, AveragedModel(torch.nn.Linear(8, 4), avg_fn=get_ema_avg_fn(0.99))).passed
        True
    """
    averaged = copy.deepcopy(averaged).double()
    network = copy.deepcopy(averaged.module)
    rng = np.random.default_rng(0)
    report = Report({"flax network": "averages", "torch network": type(averaged).__name__, "precision": "float64"})
    report.settings["inputs"] = [steps]
    decays: list[tuple[dict[str, float], dict[str, float]]] = []
    for step in range(steps):
        with torch.no_grad():
            for tensor in _state(network, averaged).values():
                tensor.copy_(torch.from_numpy(rng.normal(size=tuple(tensor.shape))))
        before, values = _arrays(averaged.module, averaged), _arrays(network, averaged)
        averaged.update_parameters(network)
        expected = _arrays(averaged.module, averaged)
        with jax.enable_x64(True):
            given = ({name: jnp.array(array) for name, array in arrays.items()} for arrays in (before, values))
            ours = {name: np.asarray(array, np.float64) for name, array in update(*given, step).items()}
        _require_alike(ours, expected)
        for name, array in expected.items():
            error = measure(ours[name], array, precision="float64")
            report.comparisons.append(
                Comparison("average", "", name, error, tolerance=PROFILES["float64"].least, step=step + 1)
            )
        decays.append((_decays(ours, before, values), _decays(expected, before, values)))
    if not report.passed:
        report.findings = [_finding(report.failures[0], decays)]
    return report


def _state(network: torch.nn.Module, averaged: Any) -> dict[str, torch.Tensor]:
    """What is averaged of the network."""
    named = [*network.named_parameters(), *(network.named_buffers() if averaged.use_buffers else ())]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


def _arrays(network: torch.nn.Module, averaged: Any) -> Arrays:
    return {name: as_numpy(tensor).copy() for name, tensor in _state(network, averaged).items()}


def _require_alike(ours: Arrays, theirs: Arrays) -> None:
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (ours, theirs)]
    if different := sorted(dict(shapes[0].items() ^ shapes[1].items())):
        raise ParityError(f"update must give one average for each it took: {', '.join(different[:5])} differ")


def _decays(after: Arrays, before: Arrays, values: Arrays) -> dict[str, float]:
    """The share of the average before in the one after, by name; NaN for what is no mixture of the two."""
    decays = {}
    for name, array in after.items():
        moved, span = array - values[name], before[name] - values[name]
        decay = float((moved * span).sum() / (span * span).sum())
        decays[name] = decay if np.allclose(moved, decay * span, rtol=0, atol=1e-6 * abs(span).max()) else np.nan
    return decays


def _finding(first: Comparison, decays: list[tuple[dict[str, float], dict[str, float]]]) -> Finding:
    """Which decay ours has and which PyTorch's, where both are mixtures of the average and the new value."""
    evidence = f"relative error {first.error.relative:.1e} in update {first.step}"
    ours, theirs = ([step[side][first.name] for step in decays] for side in (0, 1))
    if np.isnan(ours + theirs).any():
        return Finding(first.name, f"{first.name} is the first average to differ", evidence)
    words = [", ".join(f"{decay:.6g}" for decay in _shortened(side)) for side in (ours, theirs)]
    cause = f"the decay of {first.name} is {words[0]}, PyTorch's is {words[1]}"
    later, theirs_later = np.array(ours[1:]), np.array(theirs[1:])
    if not later.size:
        return Finding(first.name, cause, evidence)
    if np.allclose(later, theirs_later) and theirs[0] == 0:
        cause += ": PyTorch's first update copies the values"
    elif np.allclose(later, 1 - theirs_later):
        cause += ": the shares of the average and of the new value are exchanged"
    elif np.allclose(later, theirs[:-1]):
        cause += ": it is that of the update before"
    return Finding(first.name, cause, evidence)


def _shortened(decays: list[float]) -> list[float]:
    """One number where every update has the same decay."""
    return decays[:1] if np.allclose(decays, decays[0]) else decays
