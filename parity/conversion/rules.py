"""How one variable of each kind of layer is spelt and laid out in PyTorch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flax import nnx

from parity.conversion.modules import variables
from parity.conversion.trees import is_tree
from parity.errors import ParityError


def _same(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class LeafRule:
    """How one variable of a layer is spelt and laid out in PyTorch.

    Attributes:
        torch_name: the last part of its name in the state_dict.
        to_flax, to_torch: the change of layout, as a view where possible; each undoes the other.
        torch_dtype: what PyTorch stores, where that is not the variable's own dtype.
        ndim: how many axes the variable has; None for any number.
        others: further variables that PyTorch keeps in the same tensor. `to_flax` then gives a tuple, and `to_torch`
            takes one: this variable's value first, then theirs.
        summed: of a recurrent layer's bias, the rows of PyTorch's other bias that are added to it (see `recurrent.py`);
            None for any other variable.

    Examples:
        >>> import parity
        >>> rule = parity.LeafRule("gamma", to_flax=lambda array: array[None], to_torch=lambda array: array[0])
        >>> rule.torch_name
        'gamma'
    """

    torch_name: str
    to_flax: Callable[[np.ndarray], Any] = _same
    to_torch: Callable[[Any], np.ndarray] = _same
    torch_dtype: type | None = None
    ndim: int | None = None
    others: tuple[str, ...] = ()
    summed: slice | None = None


Rules = Mapping[str, LeafRule]


_RULES: dict[type, Callable[..., Rules]] = {}


def register_layer(*module_types: type) -> Callable[[Callable[..., Rules]], Callable[..., Rules]]:
    """Decorates a function that takes a module of these types and returns {variable name: LeafRule} for it.

    Subclasses are covered too; the nearest registered ancestor wins. A dotted name is a variable of a submodule, whose
    own rules then do not count.

    Examples:
        >>> import numpy as np, parity
        >>> from flax import nnx
        >>> class Gain(nnx.Module):
        ...     def __init__(self, features):
        ...         self.factor = nnx.Param(np.ones(features, np.float32))
        >>> @parity.register_layer(Gain)
        ... def rules_of_gain(module):
        ...     return {"factor": parity.LeafRule("gamma")}
        >>> parity.to_flax({"gamma": np.arange(3, dtype=np.float32)}, Gain(3)).factor.shape
        (3,)
    """

    def register(rules: Callable[..., Rules]) -> Callable[..., Rules]:
        for module_type in module_types:
            _RULES[module_type] = rules
        return rules

    return register


@register_layer(nnx.Linear)
def _linear(module: nnx.Linear) -> Rules:
    return {"kernel": LeafRule("weight", np.transpose, np.transpose, ndim=2), "bias": LeafRule("bias", ndim=1)}


@register_layer(nnx.LinearGeneral)
def _linear_general(module: nnx.LinearGeneral) -> Rules:
    """As an `nn.Linear` on flattened features: kernel (*in, *out) against weight (prod(out), prod(in))."""
    if module.batch_axis:
        raise ParityError("an nnx.LinearGeneral with batch_axis has no counterpart: add a rule for a subclass of it")
    return _flat_linear(tuple(module.in_features), tuple(module.out_features))


def _flat_linear(inside: tuple[int, ...], outside: tuple[int, ...]) -> Rules:
    flat = math.prod(inside), math.prod(outside)
    return {
        "kernel": LeafRule(
            "weight",
            lambda weight: np.reshape(weight.T, (*inside, *outside)),
            lambda kernel: np.reshape(kernel, flat).T,
            ndim=len(inside) + len(outside),
        ),
        "bias": LeafRule(
            "bias", lambda bias: np.reshape(bias, outside), lambda bias: np.reshape(bias, flat[1]), ndim=len(outside)
        ),
    }


@register_layer(nnx.MultiHeadAttention)
def _attention(module: nnx.MultiHeadAttention) -> Rules:
    """As `nn.MultiheadAttention`, which keeps the three projections in one tensor where their widths are equal."""
    projections = [getattr(module, name) for name in ("query", "key", "value")]
    flat = [_flat_linear(tuple(part.in_features), tuple(part.out_features)) for part in projections]
    out = _flat_linear(tuple(module.out.in_features), tuple(module.out.out_features))
    rules = {f"out.{name}": replace(rule, torch_name=f"out_proj.{rule.torch_name}") for name, rule in out.items()}

    def packed(name: str, torch_name: str) -> LeafRule:
        parts = [rules[name] for rules in flat]
        return LeafRule(
            torch_name,
            lambda tensor: tuple(part.to_flax(piece) for part, piece in zip(parts, np.split(tensor, 3), strict=True)),
            lambda values: np.concatenate([part.to_torch(value) for part, value in zip(parts, values, strict=True)]),
            ndim=parts[0].ndim,
            others=(f"key.{name}", f"value.{name}"),
        )

    if module.in_kv_features == module.in_features:
        rules["query.kernel"] = packed("kernel", "in_proj_weight")
    else:
        for name, part in zip(("query", "key", "value"), flat, strict=True):
            rules[f"{name}.kernel"] = replace(part["kernel"], torch_name=f"{name[0]}_proj_weight")
    return rules | {"query.bias": packed("bias", "in_proj_bias")}


@register_layer(nnx.PReLU)
def _prelu(module: nnx.PReLU) -> Rules:
    """One slope for all channels, as `nn.PReLU()`."""
    return {
        "negative_slope": LeafRule(
            "weight", lambda weight: np.reshape(weight, ()), lambda slope: np.reshape(slope, (1,)), ndim=0
        )
    }


@register_layer(nnx.Einsum)
def _einsum(module: nnx.Einsum) -> Rules:
    """In Flax's layout: PyTorch has no such layer, but a module of one's own that calls `torch.einsum`."""
    return {"kernel": LeafRule("weight"), "bias": LeafRule("bias")}


@register_layer(nnx.Conv)
def _conv(module: nnx.Conv) -> Rules:
    def to_flax(weight: np.ndarray) -> np.ndarray:  # (O, I, *spatial) -> (*spatial, I, O)
        return np.moveaxis(weight, (0, 1), (-1, -2))

    def to_torch(kernel: np.ndarray) -> np.ndarray:
        return np.moveaxis(kernel, (-1, -2), (0, 1))

    ndim = len(module.kernel_size) + 2
    return {"kernel": LeafRule("weight", to_flax, to_torch, ndim=ndim), "bias": LeafRule("bias", ndim=1)}


@register_layer(nnx.ConvTranspose)
def _conv_transpose(module: nnx.ConvTranspose) -> Rules:
    # PyTorch's weight is (I, O, *spatial), of the convolution whose gradient this layer is. Flax wants that kernel with
    # transpose_kernel=True, and one of its own, mirrored in space, without.
    spatial = tuple(range(len(module.kernel_size)))
    if module.transpose_kernel:
        to_flax = lambda weight: np.moveaxis(weight, (0, 1), (-1, -2))  # noqa: E731
        to_torch = lambda kernel: np.moveaxis(kernel, (-1, -2), (0, 1))  # noqa: E731
    else:
        to_flax = lambda weight: np.flip(np.moveaxis(weight, (0, 1), (-2, -1)), spatial)  # noqa: E731
        to_torch = lambda kernel: np.moveaxis(np.flip(kernel, spatial), (-2, -1), (0, 1))  # noqa: E731
    ndim = len(module.kernel_size) + 2
    return {"kernel": LeafRule("weight", to_flax, to_torch, ndim=ndim), "bias": LeafRule("bias", ndim=1)}


@register_layer(nnx.BatchNorm)
def _batch_norm(module: nnx.BatchNorm) -> Rules:
    return {
        "scale": LeafRule("weight", ndim=1),
        "bias": LeafRule("bias", ndim=1),
        "mean": LeafRule("running_mean", ndim=1),
        "var": LeafRule("running_var", ndim=1),
        "num_batches_tracked": LeafRule("num_batches_tracked", torch_dtype=np.int64),
    }


@register_layer(nnx.LayerNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.RMSNorm)
def _norm(module: nnx.Module) -> Rules:
    ndim = None if isinstance(module, nnx.LayerNorm | nnx.RMSNorm) else 1  # the former two normalise over any axes
    return {"scale": LeafRule("weight", ndim=ndim), "bias": LeafRule("bias", ndim=ndim)}


@register_layer(nnx.List, nnx.Dict)
def _container(module: nnx.Module) -> Rules:
    # PyTorch's ParameterList and ParameterDict name their parameters by the same indices and keys.
    return {name: LeafRule(name) for name in variables(module)}


@register_layer(nnx.Embed)
def _embed(module: nnx.Embed) -> Rules:
    return {"embedding": LeafRule("weight", ndim=2)}


def rules_for(module: nnx.Module, path: str) -> Rules:
    if is_tree(module):
        return {name: tree_rule(name, variable) for name, variable in variables(module).items()}
    for ancestor in type(module).__mro__:
        if ancestor in _RULES:
            return _RULES[ancestor](module)
    containers = nnx.List | nnx.Dict | nnx.Sequential
    if type(module).__module__.startswith("flax.") and not isinstance(module, containers):
        raise ParityError(
            f"{path or 'the model'} is a flax {type(module).__name__}, for which there is no rule: "
            "add one with parity.register_layer"
        )
    # A module of the user's own: its bare parameters are named alike on both sides.
    return {name: LeafRule(name) for name in variables(module)}


def has_rules(module: nnx.Module) -> bool:
    """Whether this kind of layer has rules of its own, which may name variables of its submodules."""
    return any(ancestor in _RULES for ancestor in type(module).__mro__)


# Of Linen, Haiku and equinox, and of what people write themselves.
_TREE_NAMES = {
    "kernel": "weight",
    "w": "weight",
    "scale": "weight",
    "gamma": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "b": "bias",
    "offset": "bias",
    "beta": "bias",
}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}


def tree_rule(path: str, variable: nnx.Variable) -> LeafRule:
    """The rule for a leaf of a parameter tree, by its name, since its kind of layer is not known.

    `kernel` (Linen) and `w` (Haiku) have their outputs last, as (*spatial, in, out); every other leaf lies as in
    PyTorch, a `weight` (equinox) too.
    """
    parent, _, name = path.rpartition(".")
    known = _TREE_NAMES if isinstance(variable, nnx.Param) else _STATISTICS
    torch_name = ".".join(filter(None, (parent, known.get(name, name))))
    if name in ("kernel", "w") and variable.ndim > 1:
        return LeafRule(
            torch_name,
            lambda weight: np.moveaxis(weight, (0, 1), (-1, -2)),
            lambda kernel: np.moveaxis(kernel, (-1, -2), (0, 1)),
        )
    return LeafRule(torch_name)
