"""The side that a caller's network makes, whatever it was written in."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from parity.conversion.convert import require_values
from parity.conversion.trees import Tree, as_module
from parity.errors import ParityError
from parity.sides.flax import FlaxSide

if TYPE_CHECKING:
    from parity.sides.torch import TorchSide

WAYS = (
    "an NNX module, a PyTorch module, a pair (Linen module, variables), or a pair (function, parameters) where "
    "function(parameters, inputs) gives the outputs"
)
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def is_torch(network: Any) -> bool:
    """Whether this is a PyTorch module; PyTorch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def require_network(network: Any) -> None:
    """Raises ParityError unless this is a network that has values and can be compared."""
    if is_torch(network):
        if attribute := _WRAPPERS.get(type(network).__name__):
            raise ParityError(f"the PyTorch network is wrapped in {type(network).__name__}: pass its .{attribute}")
        if isinstance(network, sys.modules["torch"].jit.ScriptModule):
            raise ParityError(
                f"the PyTorch network ({type(network).__name__}) is scripted or traced, and its calls cannot be "
                "recorded: pass the module that it was made from"
            )
        return
    module = as_module(network)
    if module is None:
        raise ParityError(f"expected {WAYS}; found {kind(network)}")
    if isinstance(module, Tree) and module.function is None:
        raise ParityError("a parameter tree alone computes nothing: pass (function, parameters)")
    require_values(module)


def as_side(
    network: Any,
    precision: str,
    *,
    names: Mapping[str, str] | None = None,
    torch_names: Collection[str] = (),
    device: str = "cpu",
) -> "FlaxSide | TorchSide":
    """A private copy of the network in one precision.

    Args:
        network: see `WAYS`.
        precision: "float64", "float32" or "bfloat16".
        names: {Flax path: PyTorch path}, of a network in JAX.
        torch_names: which of a tied parameter's names counts, of a network in JAX.
        device: of a PyTorch network.

    Raises:
        ParityError: for anything that is no network, or has no values.
    """
    require_network(network)
    if is_torch(network):
        from parity.sides.torch import TorchSide

        return TorchSide(network, precision, device)
    module = as_module(network)
    assert module is not None
    return FlaxSide(module, precision, names, torch_names)


def name_of(network: Any) -> str:
    """What a report calls the network: its class, its function, or its file."""
    if isinstance(network, str | Path):
        return str(network)
    if isinstance(network, tuple):
        network = network[0]
    if isinstance(network, nnx.bridge.ToNNX):
        network = network.to_nnx__module
    return getattr(network, "__name__", None) or type(network).__name__


def kind(value: Any) -> str:
    """Its type, or which class it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__module__}.{type(value).__name__}"
