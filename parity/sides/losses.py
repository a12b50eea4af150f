"""The same loss in JAX and in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.errors import ParityError
from parity.sides.base import Arrays, Loss
from parity.sides.recording import flatten_output


def default_loss(targets: np.ndarray | Arrays) -> Loss:
    """Cross-entropy for integer targets, otherwise the mean squared difference, summed over the outputs."""
    if not isinstance(targets, dict) and np.issubdtype(np.asarray(targets).dtype, np.integer):

        def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
            log_probabilities = jax.nn.log_softmax(_at_least_float32(outputs))
            return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()

        return cross_entropy, lambda outputs, labels: torch.nn.functional.cross_entropy(_float(outputs), labels)

    def flax_loss(outputs: Any, wanted: Any) -> jax.Array:
        outputs, wanted = flatten_output(outputs), flatten_output(wanted)
        errors = [jnp.square(_at_least_float32(outputs[name]) - wanted[name]).mean() for name in outputs]
        return jnp.stack(errors).sum()

    def torch_loss(outputs: Any, wanted: Any) -> torch.Tensor:
        outputs, wanted = flatten_output(outputs), flatten_output(wanted)
        return torch.stack([(_float(outputs[name]) - wanted[name]).square().mean() for name in outputs]).sum()

    return flax_loss, torch_loss


def _at_least_float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def require_scalar(loss: Any, side: str) -> Any:
    """`loss`, if it is one number."""
    if getattr(loss, "shape", None) != ():
        found = f"shape {tuple(loss.shape)}" if hasattr(loss, "shape") else f"a {type(loss).__name__}"
        raise ParityError(f"the loss must be a scalar, but the one for {side} returned {found}: take its mean")
    return loss
