"""Pooling with PyTorch's padding, and a gradient made of elementwise operations.

XLA's own derivative reduces (value, position) pairs over every window and scatters, which is slow on a CPU, and on a
GPU takes five times the memory traffic.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(x: jax.Array, window: int, *, stride: int, padding: int) -> jax.Array:
    """`torch.nn.MaxPool2d(window, stride, padding)` of x (N, H, W, C): padded equally on both sides, with -infinity.

    Flax's "SAME" pads an even size by (0, 1), and padding with zeros is right only after a ReLU. Where values tie, the
    whole gradient goes to the first of them in row-major order, as in PyTorch.
    """
    return _max_pool(x, window, stride, padding)


def _xla(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    # The initial value is a numpy one, known while tracing: with a traced one JAX does not recognise this as a maximum,
    # and has no gradient for it under jit.
    return lax.reduce_window(
        x,
        np.asarray(lowest, x.dtype),
        lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )


_max_pool = jax.custom_jvp(_xla, nondiff_argnums=(1, 2, 3))


@_max_pool.defjvp
def _max_pool_jvp(window, stride, padding, primals, tangents):
    return _max_pool(*primals, window, stride, padding), _tangent(*primals, *tangents, window, stride, padding)


def _tangent(x: jax.Array, dx: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """dx at each window's first maximum; linear in dx, so its transpose is the gradient."""

    def taps(array, fill):
        """The array's values at each position of the window, in row-major order."""
        edges = (padding, padding, 0)
        array = lax.pad(array, np.asarray(fill, array.dtype), ((0, 0, 0), edges, edges, (0, 0, 0)))
        height, width = (size - window + 1 for size in array.shape[1:3])
        return [array[:, i : i + height : stride, j : j + width : stride] for i in range(window) for j in range(window)]

    best, *rest = taps(x, -jnp.inf)
    first = jnp.zeros(best.shape, jnp.int8)
    for position, value in enumerate(rest, 1):
        first = jnp.where(value > best, jnp.int8(position), first)
        best = jnp.maximum(best, value)
    dy = jnp.zeros((), dx.dtype)
    for position, value in enumerate(taps(dx, 0)):
        dy = dy + jnp.where(first == position, value, 0)
    return dy
