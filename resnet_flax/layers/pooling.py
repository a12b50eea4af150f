"""Pooling with PyTorch's padding, and a gradient made of elementwise operations.

XLA's own derivative reduces (value, position) pairs over every window and scatters, which is slow on a CPU, and on a
GPU takes five times the memory traffic.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(x: jax.Array, window: int, *, stride: int, padding: int, ceil_mode: bool = False) -> jax.Array:
    """`torch.nn.MaxPool2d(window, stride, padding)` of x (N, H, W, C): padded equally on both sides, with -infinity.

    Flax's "SAME" pads an even size by (0, 1), and padding with zeros is right only after a ReLU. Where values tie, the
    whole gradient goes to the first of them in row-major order, as in PyTorch. With `ceil_mode` a last window that
    reaches beyond the image counts too, as in Caffe.
    """
    if ceil_mode and (extra := _overhang(x, window, stride, padding)) != (0, 0):
        below, right = extra
        x = lax.pad(x, np.asarray(-jnp.inf, x.dtype), ((0, 0, 0), (0, below, 0), (0, right, 0), (0, 0, 0)))
    return _max_pool(x, window, stride, padding)


@dataclass(frozen=True)
class AveragePool:
    """`torch.nn.AvgPool2d(window, stride, ceil_mode=ceil_mode, count_include_pad=False)` of images (N, H, W, C).

    A window that reaches beyond the image is averaged over its part inside. `keep_size` surrounds the image with zeros,
    which do count, so that stride 1 keeps its size (timm's `AvgPool2dSame`).
    """

    window: int
    stride: int
    ceil_mode: bool = False
    keep_size: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.keep_size:
            before = (self.window - 1) // 2
            edge = (before, self.window - 1 - before)
            x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        below, right = _overhang(x, self.window, self.stride, 0) if self.ceil_mode else (0, 0)

        def sums(array: jax.Array) -> jax.Array:
            return lax.reduce_window(
                array,
                np.zeros((), array.dtype),
                lax.add,
                window_dimensions=(1, self.window, self.window, 1),
                window_strides=(1, self.stride, self.stride, 1),
                padding=((0, 0), (0, below), (0, right), (0, 0)),
            )

        inside = self.window**2 if (below, right) == (0, 0) else sums(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
        return sums(x) / inside


@dataclass(frozen=True)
class BlurPool:
    """A binomial 3x3 filter of images (N, H, W, C), edges reflected, and of its output every `stride`-th pixel.

    Zhang 2019 (arXiv:1904.11486), as in timm's `BlurPool2d`.
    """

    stride: int

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        for axis, size in ((1, height), (2, width)):
            first, middle, last = (lax.slice_in_dim(x, tap, tap + size, self.stride, axis) for tap in range(3))
            x = first * 0.25 + middle * 0.5 + last * 0.25
        return x


def _overhang(x: jax.Array, window: int, stride: int, padding: int) -> tuple[int, int]:
    """How far PyTorch's last window reaches beyond the padded (height, width) in ceil mode.

    There is such a window only if it begins inside the image or the padding before it.
    """

    def along(size: int) -> int:
        count = -(-(size + 2 * padding - window) // stride) + 1
        if (count - 1) * stride >= size + padding:
            count -= 1
        return max((count - 1) * stride + window - (size + 2 * padding), 0)

    return along(x.shape[1]), along(x.shape[2])


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
