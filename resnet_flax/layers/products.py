"""Products of activations and a kernel, and the moments of such a product without computing it.

Their derivatives multiply activations in the activations' dtype and sum everything of a kernel's size in the kernel's.
They are custom JVPs, so forward mode, reverse mode and `vmap` all work.
"""

import jax
import jax.numpy as jnp
from jax import lax

# For the small products, whose float32 operands a GPU would otherwise round to 10 bits (TF32).
_EXACT = lax.Precision.HIGHEST


def _times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _second_moment(x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The sum of x_i y_j over all pixels, (k, k); multiplied in their dtype, returned in `dtype`."""
    pixels = tuple(range(x.ndim - 1))
    return lax.dot_general(x, y, ((pixels, pixels), ((), ())), preferred_element_type=dtype)


@jax.custom_jvp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., k) times kernel (k, c), in x's dtype; the kernel's gradient is summed in the kernel's dtype."""
    return _times(x, kernel.astype(x.dtype))


@product.defjvp
def _product_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    by_kernel = _times(x.astype(kernel.dtype), dkernel).astype(x.dtype)
    return product(x, kernel), _times(dx, kernel.astype(x.dtype)) + by_kernel


@jax.custom_jvp
def product_moments(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and mean square, (c,) each, of x (..., k) times kernel (k, c) over all but the last axis.

    From the moments of x: mean(x) K and K[:, c]^T mean(x x^T) K[:, c].
    """
    return _product_moments(x, kernel)[:2]


def _product_moments(x, kernel):
    count = x.size // x.shape[-1]
    total = x.astype(kernel.dtype).sum(range(x.ndim - 1))
    moment_kernel = jnp.matmul(_second_moment(x, x, kernel.dtype), kernel, precision=_EXACT)
    mean = jnp.matmul(total, kernel, precision=_EXACT) / count
    return mean, (kernel * moment_kernel).sum(0) / count, total, moment_kernel


@product_moments.defjvp
def _product_moments_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    mean, square, total, moment_kernel = _product_moments(x, kernel)
    count = x.size // x.shape[-1]
    dtotal = dx.astype(kernel.dtype).sum(range(x.ndim - 1))
    # In x's dtype, so that its transpose multiplies activations in that dtype too.
    half = _second_moment(x, dx, x.dtype).astype(kernel.dtype)
    dmean = jnp.matmul(dtotal, kernel, precision=_EXACT) + jnp.matmul(total, dkernel, precision=_EXACT)
    dsquare = (kernel * jnp.matmul(half, kernel, precision=_EXACT) + moment_kernel * dkernel).sum(0)
    return (mean, square), (dmean / count, dsquare * (2 / count))
