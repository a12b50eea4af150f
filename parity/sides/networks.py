"""The side that a caller's network makes, whatever it was written in."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from parity.conversion.convert import require_values
from parity.conversion.naming import leaves
from parity.conversion.trees import Tree, as_module
from parity.errors import ParityError
from parity.sides.flax import FlaxSide

if TYPE_CHECKING:
    from parity.sides.torch import TorchSide

WAYS = (
    "an NNX module, a PyTorch module, a pair (Linen module, variables), or a pair (function, parameters) where "
    "function(parameters, inputs) gives the outputs"
)
_WRAPPERS = {  # by name, since some are of modules that are imported only where they are used
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def is_torch(network: Any) -> bool:
    """Whether this is a PyTorch module; PyTorch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def unwrapped(network: Any) -> Any:
    """The network inside what `torch.compile`, DataParallel or an average of weights put around it."""
    while is_torch(network) and (attribute := _WRAPPERS.get(type(network).__name__)):
        network = getattr(network, attribute)
    return network


def require_network(network: Any) -> None:
    """Raises ParityError unless this is a network that has values and can be compared."""
    if is_torch(network):
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


def with_as_many_biases(candidate: Any, reference: Any, names: Mapping[str, str] | None) -> tuple[Any, Any, list[str]]:
    """Both networks, and the names of biases that are zero in the one in PyTorch; see `parity.sides.biases`."""
    if is_torch(candidate) == is_torch(reference):
        return candidate, reference, []
    from parity.sides.biases import with_one_bias

    module = as_module(reference if is_torch(candidate) else candidate)
    assert module is not None
    known = {leaf.torch_name for leaf in leaves(module, names)}
    if is_torch(candidate):
        candidate, zeros = with_one_bias(candidate, known)
    else:
        reference, zeros = with_one_bias(reference, known)
    return candidate, reference, zeros


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
