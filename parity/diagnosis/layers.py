"""Known reasons why one layer differs from PyTorch's, each tried out: the error must vanish with it."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.checks.isolation import Isolated, Recorded, isolate
from parity.checks.pair import Pair
from parity.diagnosis.between import as_pair
from parity.sides.torch_private import BatchNorm, Convolution


def why(layer: Isolated) -> str:
    """The first hypothesis that explains why `layer` differs, in plain words; "" if none does."""
    for hypothesis in HYPOTHESES:
        if explanation := hypothesis(layer):
            return explanation
    return ""


def _conv_settings(layer: Isolated) -> str:
    ours, theirs = layer.ours, layer.theirs
    if not isinstance(ours, nnx.Conv) or not isinstance(theirs, Convolution):
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
    if not isinstance(layer.theirs, BatchNorm):
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
        return fast_variance(layer)
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
        return f"{layer.path} has one value per channel in train mode: Flax uses a variance of 0, PyTorch refuses"
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


def fast_variance(layer: Isolated) -> str:
    return f"use_fast_variance of {layer.path}: E[x^2] - E[x]^2 cancels where the mean is large against the deviation"


def moved_stride(pair: Pair, recorded: Recorded, layer: Isolated) -> str:
    """The stride in the first 1x1 convolution of a bottleneck (v1) instead of in the 3x3 (v1.5)."""
    parent, _, _name = layer.path.rpartition(".")
    block = isolate(pair, recorded, parent, train=layer.train) if parent else None
    if block is None:
        return ""
    convs = {name: child for name, child in block.theirs.named_children() if isinstance(child, Convolution)}
    ours: dict[str, Any] = {name: getattr(block.ours, name, None) for name in convs}
    moved = {
        name: as_pair(child.stride)
        for name, child in convs.items()
        if hasattr(ours[name], "strides") and as_pair(ours[name].strides) != as_pair(child.stride)
    }
    if len(moved) < 2:
        return ""
    have = [name for name in moved if max(as_pair(ours[name].strides)) > 1]
    for name, stride in moved.items():
        ours[name].strides = stride
    if not have or block.error() > max(block.limit, 1e-9):
        return ""
    want = [name for name, stride in moved.items() if max(stride) > 1]
    return f"the stride of {parent} sits in {', '.join(have)}, in PyTorch in {', '.join(want)}" + (
        " (v1 has it in the first 1x1, torchvision's v1.5 in the 3x3)" if have == ["conv1"] else ""
    )
