"""Known reasons why one train-mode batch leaves other running statistics than PyTorch's, each tried out."""

import copy
from typing import Any, cast

import jax
import numpy as np
import torch
from flax import nnx

from parity.checks.isolation import Isolated
from parity.checks.tolerance import relative
from parity.diagnosis.layers import fast_variance


def why_statistics(layer: Isolated) -> str:
    """Why one train-mode batch leaves other running statistics than in PyTorch; "" if no hypothesis explains it."""
    ours, theirs = layer.ours, cast(Any, copy.deepcopy(layer.theirs).double())
    if not hasattr(ours, "var") or not hasattr(theirs, "running_var") or theirs.running_var is None:
        return ""
    batches = int(theirs.num_batches_tracked) + 1 if theirs.momentum is None else 0
    share = 1 / batches if batches else theirs.momentum  # without a momentum PyTorch keeps the mean of all batches
    with torch.no_grad():
        theirs(layer.torch_inputs.double())
    wanted = _statistics_of_torch(theirs)
    before = _statistics(ours)
    after = _updated(ours, layer.inputs)
    count = int(np.prod(layer.inputs.shape[:-1]))
    momentum = getattr(ours, "momentum", None)

    def agrees(statistics: dict[str, np.ndarray]) -> bool:
        return all(relative(statistics[name], wanted[name]) <= max(layer.limit, 1e-9) for name in wanted)

    def retrained(**attributes: Any) -> dict[str, np.ndarray]:
        changed = nnx.clone(ours)
        for name, value in attributes.items():
            setattr(changed, name, value)
        return _updated(changed, layer.inputs)

    def unbiased(statistics: dict[str, np.ndarray], momentum: float) -> dict[str, np.ndarray]:
        batch = (statistics["var"] - momentum * before["var"]) * (count / (count - 1))
        return {**statistics, "var": momentum * before["var"] + batch}

    their_momentum = 1 - share
    same_momentum = momentum is not None and np.isclose(momentum, their_momentum)
    of_momentum = (
        f"BN momentum of {layer.path} is {momentum:g}, but PyTorch's {theirs.momentum:g} is Flax's {their_momentum:g}"
        if momentum is not None and theirs.momentum is not None
        else f"BN momentum of {layer.path} is {momentum}, PyTorch's is None: it keeps the mean of all batches"
    )
    of_bias = (
        f"running variance of {layer.path} is biased: PyTorch keeps the unbiased variance, n/(n-1) times that "
        f"(n = {count}), and so does resnet_flax.layers.BatchNorm"
    )
    if momentum is not None and not same_momentum:
        fixed = retrained(momentum=their_momentum)
        if agrees(fixed):
            return of_momentum
        if agrees(unbiased(fixed, their_momentum)):
            return f"{of_momentum}; and {of_bias}"
    if momentum is not None and agrees(unbiased(after, momentum)):
        return of_bias
    if getattr(ours, "use_fast_variance", False):
        fixed = retrained(use_fast_variance=False, momentum=their_momentum)
        if agrees(fixed) or agrees(unbiased(fixed, their_momentum)):
            return fast_variance(layer)
    if all(relative(after[name], wanted[name].astype(np.float32)) <= 2.0**-24 for name in wanted):
        return f"running statistics of {layer.path} are kept in float32, whatever the parameters' type"
    if all(np.array_equal(after[name], before[name]) for name in wanted):
        return f"running statistics of {layer.path} do not change in train mode"
    return ""


def _statistics(module: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(module, name).get_value(), np.float64) for name in ("mean", "var")}


def _statistics_of_torch(module: Any) -> dict[str, np.ndarray]:
    return {"mean": module.running_mean.cpu().numpy(), "var": module.running_var.cpu().numpy()}


def _updated(module: Any, inputs: jax.Array) -> dict[str, np.ndarray]:
    module = nnx.clone(module)
    module(inputs)
    return _statistics(module)
