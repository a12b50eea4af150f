"""The loss that a check takes where none is given, in JAX and in PyTorch."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.errors import ParityError
from parity.sides.base import Arrays, Loss
from parity.sides.recording import flatten_output

if TYPE_CHECKING:
    import torch


def default_loss(targets: np.ndarray | Arrays) -> Loss:
    """Cross-entropy for integer targets, otherwise the mean squared difference, summed over the outputs."""
    if not isinstance(targets, dict) and np.issubdtype(np.asarray(targets).dtype, np.integer):
        return Loss(_cross_entropy, _torch_cross_entropy)
    return Loss(_mean_squares, _torch_mean_squares)


def _cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()


def _torch_cross_entropy(outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.nn.functional.cross_entropy(_at_least_float32(outputs), labels)


def _mean_squares(outputs: Any, targets: Any) -> jax.Array:
    outputs, targets = flatten_output(outputs), flatten_output(targets)
    wide = {name: value.astype(jnp.promote_types(value.dtype, jnp.float32)) for name, value in outputs.items()}
    # An infinite output, as a mask leaves it, has no distance from anything.
    errors = [jnp.where(jnp.isinf(value), 0, value - targets[name]) for name, value in wide.items()]
    return jnp.stack([(error * error.conj()).real.mean() for error in errors]).sum()


def _torch_mean_squares(outputs: Any, targets: Any) -> "torch.Tensor":
    import torch

    outputs, targets = flatten_output(outputs), flatten_output(targets)
    wide = {name: _at_least_float32(torch.as_tensor(value)) for name, value in outputs.items()}
    errors = [torch.where(torch.isinf(value), 0, value - targets[name]) for name, value in wide.items()]
    return torch.stack([(error * error.conj()).real.mean() for error in errors]).sum()


def _at_least_float32(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def require_scalar(loss: Any, framework: str) -> Any:
    """`loss`, if it is one number.

    Raises:
        ParityError: otherwise.
    """
    if getattr(loss, "shape", None) != ():
        returned = f"shape {tuple(loss.shape)}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise ParityError(f"the loss must be a scalar, but the one for {framework} returned {returned}: take its mean")
    return loss
