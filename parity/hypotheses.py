"""Known reasons why one layer differs from PyTorch's, each tried out: the error must vanish with it."""

import copy
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.errors import relative
from parity.isolation import Isolated


def why(layer: Isolated) -> str:
    """The first hypothesis that explains why `layer` differs, in plain words; "" if none does."""
    for hypothesis in HYPOTHESES:
        if explanation := hypothesis(layer):
            return explanation
    return ""


def _conv_settings(layer: Isolated) -> str:
    ours, theirs = layer.ours, layer.theirs
    if not isinstance(ours, nnx.Conv) or not isinstance(theirs, torch.nn.modules.conv._ConvNd):
        return ""
    # Flax's names for PyTorch's settings.
    settings: dict[str, tuple[str, Any]] = {
        "padding": ("padding", _torch_padding(theirs)),
        "strides": ("stride", theirs.stride),
        "kernel_dilation": ("dilation", theirs.dilation),
        "feature_group_count": ("groups", theirs.groups),
    }
    for attribute, (name, value) in settings.items():
        if layer.vanishes(**{attribute: value}):
            return f"{name} of {layer.path} is {_spell(getattr(ours, attribute))}, PyTorch's is {_spell(value)}"
    if layer.vanishes(**{attribute: value for attribute, (_, value) in settings.items()}):
        return f"padding, stride, dilation or groups of {layer.path} differ from PyTorch's {theirs}"
    return ""


def _torch_padding(conv: Any) -> Any:
    return conv.padding.upper() if isinstance(conv.padding, str) else [(p, p) for p in conv.padding]


def _spell(value: Any) -> str:
    """(2, 2) as 2, [(1, 1), (1, 1)] as 1."""
    while isinstance(value, tuple | list) and value and all(item == value[0] for item in value):
        value = value[0]
    return str(value)


def _kernel_layout(layer: Isolated) -> str:
    kernel = getattr(layer.ours, "kernel", None)
    if not isinstance(kernel, nnx.Variable):
        return ""
    value = np.asarray(kernel.get_value())
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "input and output channels swapped": lambda k: np.swapaxes(k, -1, -2),
        "height and width swapped": lambda k: np.swapaxes(k, 0, 1) if k.ndim == 4 else k,
        "its spatial axes reversed": lambda k: np.flip(k, tuple(range(k.ndim - 2))) if k.ndim > 2 else k,
    }
    for words, change in changes.items():
        changed: Any = nnx.clone(layer.ours)
        if change(value).shape == value.shape and not np.array_equal(change(value), value):
            changed.kernel.set_value(jnp.asarray(change(value)))
            if layer.settles(changed):
                return f"kernel of {layer.path} is not transposed as PyTorch's: it has {words}"
    return ""


def _epsilon(layer: Isolated) -> str:
    ours, theirs = getattr(layer.ours, "epsilon", None), getattr(layer.theirs, "eps", None)
    if ours is not None and theirs is not None and ours != theirs and layer.vanishes(epsilon=theirs):
        return f"epsilon of {layer.path} is {ours:g}, PyTorch's is {theirs:g}"
    return ""


def _wrong_mode(layer: Isolated) -> str:
    if not isinstance(layer.theirs, torch.nn.modules.batchnorm._BatchNorm):
        return ""
    other = copy.deepcopy(layer.theirs).double().train(not layer.train)
    with torch.no_grad():
        output = other(layer.torch_inputs.double()).cpu().numpy()
    if layer.agrees(output):
        modes = ("train", "eval") if layer.train else ("eval", "train")
        return f"{modes[0]} ran in {modes[1]} mode: {layer.path} normalises with the " + (
            "running statistics" if layer.train else "batch's statistics"
        )
    return ""


def _fast_variance(layer: Isolated) -> str:
    if getattr(layer.ours, "use_fast_variance", False) and layer.vanishes(use_fast_variance=False):
        return _fast_words(layer)
    return ""


def _low_precision(layer: Isolated) -> str:
    precision = getattr(layer.ours, "precision", None)
    if precision is not None and layer.vanishes(precision=jax.lax.Precision.HIGHEST):
        return f"products of {layer.path} are computed at reduced precision ({precision}): TF32 or bfloat16 is on"
    dtype = getattr(layer.ours, "dtype", None)
    if dtype == jnp.bfloat16 and isinstance(layer.ours, nnx.BatchNorm) and layer.vanishes(dtype=jnp.float32):
        return f"{layer.path} casts its statistics, scale and bias to {jnp.dtype(dtype)}: keep them float32"
    return ""


def _single_value(layer: Isolated) -> str:
    values = np.prod(layer.inputs.shape[:-1])
    if layer.train and values == 1 and isinstance(layer.ours, nnx.BatchNorm):
        return f"{layer.path} has one value per channel in train mode: its variance is taken for 0, PyTorch refuses"
    return ""


HYPOTHESES: tuple[Callable[[Isolated], str], ...] = (
    _single_value,
    _conv_settings,
    _kernel_layout,
    _epsilon,
    _wrong_mode,
    _fast_variance,
    _low_precision,
)


def why_statistics(layer: Isolated) -> str:
    """Why one train-mode batch leaves other running statistics than in PyTorch; "" if no hypothesis explains it."""
    ours, theirs = layer.ours, cast(Any, copy.deepcopy(layer.theirs).double())
    if not hasattr(ours, "var") or not hasattr(theirs, "running_var") or theirs.running_var is None:
        return ""
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

    their_momentum = 1 - (theirs.momentum if theirs.momentum is not None else 1.0)
    same_momentum = momentum is not None and np.isclose(momentum, their_momentum)
    of_momentum = (
        f"BN momentum of {layer.path} is {momentum:g}, but PyTorch's {theirs.momentum:g} is Flax's {their_momentum:g}"
        if momentum is not None and theirs.momentum is not None
        else ""
    )
    of_bias = (
        f"running variance of {layer.path} is biased: PyTorch's is n/(n-1) times the batch's, here n = {count} "
        "(nnx.BatchNorm keeps the one, resnet_flax.layers.BatchNorm the other)"
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
            return _fast_words(layer)
    if all(relative(after[name], wanted[name].astype(np.float32)) <= 2.0**-24 for name in wanted):
        return f"running statistics of {layer.path} are kept in float32, whatever the parameters' type"
    if all(np.array_equal(after[name], before[name]) for name in wanted):
        return f"running statistics of {layer.path} do not change in train mode"
    return ""


def _fast_words(layer: Isolated) -> str:
    return f"use_fast_variance of {layer.path}: E[x^2] - E[x]^2 cancels where the mean is large against the deviation"


def _statistics(module: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(module, name).get_value(), np.float64) for name in ("mean", "var")}


def _statistics_of_torch(module: Any) -> dict[str, np.ndarray]:
    return {"mean": module.running_mean.cpu().numpy(), "var": module.running_var.cpu().numpy()}


def _updated(module: Any, inputs: jax.Array) -> dict[str, np.ndarray]:
    module = nnx.clone(module)
    module(inputs)
    return _statistics(module)
