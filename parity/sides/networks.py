"""Whether what a caller gave are the two networks."""

from typing import Any

from flax import nnx

from parity.errors import ParityError


def require_networks(flax_model: Any, torch_model: Any) -> None:
    """Raises ParityError unless these are a Flax network and then a PyTorch one that is not wrapped in anything."""
    import torch

    if not isinstance(flax_model, nnx.Module) or not isinstance(torch_model, torch.nn.Module):
        given = " and ".join(map(_kind, (flax_model, torch_model)))
        raise ParityError(f"expected the Flax network and then the PyTorch one, found {given}")
    if isinstance(torch_model, torch.jit.ScriptModule):
        raise ParityError(
            "the PyTorch network is a TorchScript program, whose layers cannot be recorded: pass the module that it "
            "was traced or scripted from, or load its state_dict() into one"
        )
    wrapped = {
        torch.nn.DataParallel: "module",
        torch.nn.parallel.DistributedDataParallel: "module",
        torch.optim.swa_utils.AveragedModel: "module",
    }
    attribute = next((name for kind, name in wrapped.items() if isinstance(torch_model, kind)), None)
    if hasattr(torch_model, "_orig_mod"):  # torch.compile's; its class is in a module that takes seconds to import
        attribute = "_orig_mod"
    if attribute:
        raise ParityError(f"the PyTorch network is wrapped in {type(torch_model).__name__}: pass its .{attribute}")


def _kind(value: Any) -> str:
    """Its type, or which class it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__module__}.{type(value).__name__}"
