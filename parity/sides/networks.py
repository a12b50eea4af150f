"""Whether what a caller gave are the two networks."""

from typing import Any

from flax import nnx

from parity.errors import ParityError


def require_networks(flax_model: Any, torch_model: Any) -> None:
    """Raises ParityError unless these are a Flax network and then a PyTorch one."""
    import torch

    if not isinstance(flax_model, nnx.Module) or not isinstance(torch_model, torch.nn.Module):
        given = " and ".join(map(_kind, (flax_model, torch_model)))
        raise ParityError(f"expected the Flax network and then the PyTorch one, found {given}")
    if isinstance(torch_model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise ParityError(f"the PyTorch network is wrapped in {type(torch_model).__name__}: pass its .module")


def _kind(value: Any) -> str:
    """Its type, or which class it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__module__}.{type(value).__name__}"
