"""A 2-D convolution whose programs for a CPU are fast; for every other platform they are XLA's own.

On a CPU, XLA computes a convolution's gradient in its kernel as a convolution with a window as large as the image, at
a tenth of the speed of a matrix product. Here that gradient is written as matrix products. `jax.lax.platform_dependent`
chooses when the program is lowered, so a program lowered for a GPU on a machine without one contains XLA's convolution.

With y[r, c] = sum over i, j of x[s r + i - p, s c + j - p] k[i, j] (every term a matrix product over channels), the
gradient in k[i, j] is the product over all pixels of the input, shifted by (i, j), with the output's gradient:

- 1x1: one product; the forward pass and the gradient in the input are products as well.
- otherwise: the shifted inputs side by side (im2col), times the gradient. At stride 1 only the shifts along a row are
  laid side by side (kw copies of x instead of kh * kw) and the product forms kh results at once, which the shifts along
  a column then pick apart. One image at a time, so that the copies stay in the cache.
- groups: one small product per tap and group.

The derivative is a `jax.custom_jvp` whose tangent is an ordinary linear function: forward mode, reverse mode, `vmap`
and higher derivatives follow from it (a `custom_vjp` would forbid forward mode).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """What a convolution does besides its operands; hashable, so that it is static under every transformation."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any


def conv_general_dilated(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Any,
    padding: Any,
    *,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, faster on a CPU for inputs (N, H, W, C) and kernels (kh, kw, C / groups, out).

    Takes the same arguments and raises the same errors. Any other layout, a dilated input, a requested result type or
    sharding is passed on to it unchanged.
    """
    options = {
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "precision": precision,
    }
    plain = (
        inputs.ndim == 4
        and jnp.issubdtype(inputs.dtype, jnp.floating)
        and inputs.dtype == kernel.dtype
        and lax.conv_dimension_numbers(inputs.shape, kernel.shape, dimension_numbers)
        == lax.conv_dimension_numbers(inputs.shape, kernel.shape, LAYOUT)
        and set(lhs_dilation or (1,)) == {1}
        and batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
    )
    arguments = dict(lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation, **options)
    # Shapes are checked by XLA's own function, so that its errors are the ones seen.
    if not plain:
        return lax.conv_general_dilated(
            inputs,
            kernel,
            window_strides,
            padding,
            batch_group_count=batch_group_count,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
            **arguments,
        )
    jax.eval_shape(
        partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **arguments), inputs, kernel
    )
    strides = tuple(window_strides)
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        extent = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(inputs.shape[1:3], extent, strides, padding)
    window = _Window(strides, tuple((low, high) for low, high in padding), dilation, feature_group_count, precision)
    inputs, kernel = _vary_together(inputs, kernel)
    return _convolve(inputs, kernel, window)


def _vary_together(*arrays: jax.Array) -> list[jax.Array]:
    """Inside `shard_map`, let all vary over the same mesh axes, so that a replicated kernel's gradient is summed over
    the devices once, outside the loop over images below."""
    axes = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))
    return [
        lax.pcast(array, tuple(missing), to="varying")
        if (missing := axes - jax.typeof(array).manual_axis_type.varying)
        else array
        for array in arrays
    ]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    xla = partial(_xla, window=window)
    if not _is_pointwise(kernel, window):
        return xla(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(_pointwise, window=window), default=xla)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(window, primals, tangents):
    x, kernel = primals
    dx, dkernel = tangents
    y = _convolve(x, kernel, window)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_convolve(dx, kernel, window))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(
            lax.platform_dependent(
                x, dkernel, cpu=partial(_kernel_tangent, window=window), default=partial(_xla, window=window)
            )
        )
    return y, (sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y))


def _xla(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def _is_pointwise(kernel: jax.Array, window: _Window) -> bool:
    return kernel.shape[:2] == (1, 1) and window.groups == 1 and window.padding == ((0, 0), (0, 0))


def _pointwise(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    x = x[:, :: window.strides[0], :: window.strides[1]]
    return _contract(x, kernel[0, 0], window)


# The convolution as a linear function of the kernel: its transpose, by JAX, is the kernel's gradient.


def _kernel_tangent(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """`_xla`, written so that its transpose in the kernel is made of matrix products."""
    if _is_pointwise(kernel, window):
        return _pointwise(x, kernel, window)
    dtype = x.dtype
    if jnp.finfo(dtype).bits < 32:  # the gradient is summed over the images in float32, and rounded once
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    if window.groups > 1:
        form = _per_tap
    elif window.strides == (1, 1):
        form = _row_taps
    else:
        form = _all_taps

    @partial(jax.checkpoint, prevent_cse=False)  # keep the image, not its nine shifted copies
    def one_image(_, image):
        return _, form(image[None], kernel, window)[0]

    return lax.scan(one_image, None, x)[1].astype(dtype)


def _outputs(x: jax.Array, kernel: jax.Array, window: _Window) -> tuple[int, int]:
    """Height and width of the output."""
    height, width = (
        (size + low + high - (taps - 1) * dilation - 1) // stride + 1
        for size, (low, high), taps, dilation, stride in zip(
            x.shape[1:3], window.padding, kernel.shape[:2], window.dilation, window.strides, strict=True
        )
    )
    return height, width


def _pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Zeros around the images; a negative number crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _shifts(x: jax.Array, axis: int, taps: int, outputs: int, window: _Window) -> list[jax.Array]:
    """What each tap along an axis meets: x from the tap's offset on, in steps of the stride."""
    stride, dilation = window.strides[axis - 1], window.dilation[axis - 1]
    span = (outputs - 1) * stride + 1
    return [lax.slice_in_dim(x, t * dilation, t * dilation + span, stride, axis) for t in range(taps)]


def _contract(x: jax.Array, matrix: jax.Array, window: _Window) -> jax.Array:
    # With the pixels in one dimension, the transpose in the matrix is a product that reads x as it lies; with three,
    # XLA first makes a transposed copy of the output's gradient.
    y = lax.dot_general(x.reshape(-1, x.shape[3]), matrix, (((1,), (0,)), ((), ())), precision=window.precision)
    return y.reshape(*x.shape[:3], matrix.shape[1])


def _all_taps(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """im2col: all shifted inputs side by side, one product."""
    kh, kw, channels, features = kernel.shape
    height, width = _outputs(x, kernel, window)
    columns = [
        part
        for rows in _shifts(_pad(x, *window.padding), 1, kh, height, window)
        for part in _shifts(rows, 2, kw, width, window)
    ]
    return _contract(jnp.concatenate(columns, 3), kernel.reshape(kh * kw * channels, features), window)


def _row_taps(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """The shifts along a row side by side; one product holds kh results, to be shifted and added."""
    kh, kw, channels, features = kernel.shape
    height, width = _outputs(x, kernel, window)
    beside = jnp.concatenate(_shifts(_pad(x, (0, 0), window.padding[1]), 2, kw, width, window), 3)
    products = _contract(beside, kernel.transpose(1, 2, 0, 3).reshape(kw * channels, kh * features), window)
    y = jnp.zeros((), x.dtype)
    for i, part in enumerate(lax.split(products, [features] * kh, 3)):
        low = window.padding[0][0] - i * window.dilation[0]
        y = y + _pad(part, (low, height - x.shape[1] - low), (0, 0))
    return y


def _per_tap(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """A batch of products, one for each group, for every tap."""
    kh, kw, channels, features = kernel.shape
    height, width = _outputs(x, kernel, window)
    grouped = kernel.reshape(kh, kw, channels, window.groups, features // window.groups)
    y = jnp.zeros((), x.dtype)
    for i, rows in enumerate(_shifts(_pad(x, *window.padding), 1, kh, height, window)):
        for j, part in enumerate(_shifts(rows, 2, kw, width, window)):
            part = part.reshape(*part.shape[:3], window.groups, channels)
            y = y + jnp.einsum("nhwgc,cgo->nhwgo", part, grouped[i, j], precision=window.precision)
    return y.reshape(x.shape[0], height, width, features)
