"""Pooling with PyTorch's padding."""

import jax
import jax.numpy as jnp
import numpy as np


def max_pool(x: jax.Array, window: int, *, stride: int, padding: int) -> jax.Array:
    """`torch.nn.MaxPool2d(window, stride, padding)` of x (N, H, W, C): both sides padded alike, with minus infinity.

    Flax's "SAME" pads an even size by (0, 1), and padding with zeros is right only behind a ReLU.
    """
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    # A numpy start value, known while tracing: with one that is itself traced, JAX does not see that this is a maximum
    # and has no gradient for it under jit.
    return jax.lax.reduce_window(
        x,
        np.asarray(lowest, x.dtype),
        jax.lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )
