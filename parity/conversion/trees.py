"""Networks in JAX that are no NNX module, held as one: a Linen module and its variables, a function and its parameters.

Flax's bridge between Linen and NNX was read from flax 0.12.8; `tests/parity/conversion/test_trees.py` fails first where
a release changes it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.nnx.bridge import variables as bridge

from parity.errors import ParityError

COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class Tree(nnx.Module):
    """A function (parameters, inputs) -> outputs and its tree of parameters, as a module.

    Every array of floats is a variable, by its dotted path in the tree; a leaf that is anything else stays as it is. Of
    a tree of Linen's collections, "params" and "batch_stats" are dropped from the paths.
    """

    def __init__(self, function: Callable | None, parameters: Any):
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(parameters)
        in_collections = isinstance(parameters, Mapping) and bool(parameters) and set(parameters) <= set(COLLECTIONS)
        self.function = function
        names: list[str | None] = []
        constants: list[_Constant] = []
        for path, leaf in leaves:
            parts = [_key(entry) for entry in path]
            kind = COLLECTIONS[parts.pop(0)] if in_collections else nnx.Param
            name = ".".join(parts) or "value"
            is_parameter = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            names.append(name if is_parameter else None)
            constants.append(_Constant(None if is_parameter else leaf))
            if is_parameter:
                if hasattr(self, name):
                    raise ParityError(f"two leaves of the parameter tree are called {name}")
                setattr(self, name, kind(leaf))
        self.names, self.constants = tuple(names), tuple(constants)
        if not any(names):
            raise ParityError("the parameter tree holds no array of floats")

    def parameters(self) -> Any:
        """The tree, with the variables' values."""
        values = [
            getattr(self, name).get_value() if name else constant.value
            for name, constant in zip(self.names, self.constants, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self.structure, values)

    def __call__(self, inputs: Any) -> Any:
        if self.function is None:
            raise ParityError("a parameter tree alone computes nothing: pass (function, parameters)")
        return self.function(self.parameters(), inputs)


class _Constant:
    """A leaf that is not a parameter, which Flax need not look into; equal only to itself."""

    def __init__(self, value: Any):
        self.value = value

    def __deepcopy__(self, memo: Any) -> "_Constant":
        return self


def _key(entry: Any) -> str:
    """One step of a path; Haiku's own separators become dots."""
    key = next(getattr(entry, field) for field in ("key", "idx", "name") if hasattr(entry, field))
    return ".".join(part for part in str(key).split("/") if part and part != "~")


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array | jax.ShapeDtypeStruct)


def is_tree(module: Any) -> bool:
    """Whether a module's variables are named by a tree of parameters, and not by kinds of layers."""
    return isinstance(module, Tree | nnx.bridge.ToNNX)


def is_linen_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], linen.Module)


def is_function_pair(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not callable(value[0]):
        return False
    # (network, inputs) is another thing, and a PyTorch module can be called, too.
    is_network = isinstance(value[0], nnx.Module | linen.Module) or hasattr(value[0], "state_dict")
    return not is_network and any(map(is_array, jax.tree.leaves(value[1])))


def as_module(value: Any) -> nnx.Module | None:
    """The network as an NNX module: itself, or a Linen pair, a function's pair or a bare tree held as one.

    Returns:
        None for anything else.

    Raises:
        ParityError: for a Linen module without variables.
    """
    if isinstance(value, nnx.bridge.ToNNX) and not _attributes(value):
        raise ParityError("the nnx.bridge.ToNNX has no variables yet: call its lazy_init(inputs) first")
    if isinstance(value, nnx.Module):
        return value
    if isinstance(value, linen.Module):
        name = type(value).__name__
        raise ParityError(f"{name} is a Linen module, which has no variables of its own: pass ({name}, variables)")
    if is_linen_pair(value):
        module, variables = value
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise ParityError("a Linen network is a pair (module, variables) with variables = module.init(key, inputs)")
        network = nnx.bridge.ToNNX(module)
        for name, attribute in bridge.linen_vars_to_nnx_attrs(variables).items():
            setattr(network, name, nnx.data(attribute))
        return network
    if is_function_pair(value):
        return Tree(*value)
    if isinstance(value, Mapping) and any(map(is_array, jax.tree.leaves(value))):
        return Tree(None, value)
    return None


def as_given(module: nnx.Module, given: Any) -> Any:
    """What the caller gave, with the module's values: the inverse of `as_module`."""
    if isinstance(given, nnx.Module):
        return module
    if is_linen_pair(given):
        return given[0], bridge.nnx_attrs_to_linen_vars(_attributes(module))
    assert isinstance(module, Tree)
    return (given[0], module.parameters()) if isinstance(given, tuple) else module.parameters()


def _attributes(module: nnx.Module) -> dict[str, Any]:
    hidden = ("to_nnx__", "_pytree__")
    return {name: value for name, value in vars(module).items() if not name.startswith(hidden)}
