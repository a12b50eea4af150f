"""Pooling with PyTorch's padding."""

import jax
import jax.numpy as jnp


def max_pool(x: jax.Array, window: int, *, stride: int, padding: int) -> jax.Array:
    """`torch.nn.MaxPool2d(window, stride, padding)` of x (N, H, W, C): both sides padded alike, with minus infinity.

    Flax's "SAME" pads an even size by (0, 1), and padding with zeros is right only behind a ReLU.
    """
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return jax.lax.reduce_window(
        x,
        jnp.asarray(lowest, x.dtype),
        jax.lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )
