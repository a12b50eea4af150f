"""How one variable of each kind of layer is spelt and laid out in PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flax import nnx

from parity.conversion.modules import variables
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
    """

    torch_name: str
    to_flax: Callable[[np.ndarray], np.ndarray] = _same
    to_torch: Callable[[np.ndarray], np.ndarray] = _same
    torch_dtype: type | None = None


Rules = Mapping[str, LeafRule]


_RULES: dict[type, Callable[..., Rules]] = {}


def register_layer(*module_types: type) -> Callable[[Callable[..., Rules]], Callable[..., Rules]]:
    """Decorates a function that takes a module of these types and returns {variable name: LeafRule} for it.

    Subclasses are covered too; the nearest registered ancestor wins.
    """

    def register(rules: Callable[..., Rules]) -> Callable[..., Rules]:
        for module_type in module_types:
            _RULES[module_type] = rules
        return rules

    return register


@register_layer(nnx.Linear)
def _linear(module: nnx.Linear) -> Rules:
    return {"kernel": LeafRule("weight", np.transpose, np.transpose), "bias": LeafRule("bias")}


@register_layer(nnx.Conv)
def _conv(module: nnx.Conv) -> Rules:
    def to_flax(weight: np.ndarray) -> np.ndarray:  # (O, I, *spatial) -> (*spatial, I, O)
        return np.moveaxis(weight, (0, 1), (-1, -2))

    def to_torch(kernel: np.ndarray) -> np.ndarray:
        return np.moveaxis(kernel, (-1, -2), (0, 1))

    return {"kernel": LeafRule("weight", to_flax, to_torch), "bias": LeafRule("bias")}


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
    return {"kernel": LeafRule("weight", to_flax, to_torch), "bias": LeafRule("bias")}


@register_layer(nnx.BatchNorm)
def _batch_norm(module: nnx.BatchNorm) -> Rules:
    return {
        "scale": LeafRule("weight"),
        "bias": LeafRule("bias"),
        "mean": LeafRule("running_mean"),
        "var": LeafRule("running_var"),
        "num_batches_tracked": LeafRule("num_batches_tracked", torch_dtype=np.int64),
    }


@register_layer(nnx.LayerNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.RMSNorm)
def _norm(module: nnx.Module) -> Rules:
    return {"scale": LeafRule("weight"), "bias": LeafRule("bias")}


@register_layer(nnx.List, nnx.Dict)
def _container(module: nnx.Module) -> Rules:
    # PyTorch's ParameterList and ParameterDict name their parameters by the same indices and keys.
    return {name: LeafRule(name) for name in variables(module)}


@register_layer(nnx.Embed)
def _embed(module: nnx.Embed) -> Rules:
    return {"embedding": LeafRule("weight")}


def rules_for(module: nnx.Module, path: str) -> Rules:
    for ancestor in type(module).__mro__:
        if ancestor in _RULES:
            return _RULES[ancestor](module)
    if type(module).__module__.startswith("flax."):
        raise ParityError(
            f"{path or 'the model'} is a flax {type(module).__name__}, for which there is no rule: "
            "add one with parity.register_layer"
        )
    # A module of the user's own: its bare parameters are named alike on both sides.
    return {name: LeafRule(name) for name in variables(module)}
