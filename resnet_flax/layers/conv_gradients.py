"""A 2-D convolution that is fast on a CPU; on every other platform it is XLA's own.

On a CPU, XLA computes the gradient with respect to the kernel as a convolution in a layout that its libraries do not
read, at a tenth of their speed. `jax.lax.platform_dependent` chooses between that and the forms below when the program
is lowered, so a program lowered for a GPU on a machine without one contains XLA's convolution.

With y[r, c] = sum over i, j of x[s r + i - p, s c + j - p] k[i, j] (every term a matrix product over channels), the
gradient with respect to k[i, j] is the product, over all pixels, of the input shifted by (i, j) and the output's
gradient:

- 1x1: one product; the forward pass and the gradient with respect to the input are products as well.
- otherwise, that is a convolution again, of the image (channels, height, width, images) with the output's gradient as
  its kernel (height, width, images, out), dilated by s: both arrays are written in that layout first.
- groups: one small product per tap and group, for a few images at a time. In the forward pass and the gradient with
  respect to the input, blocks of groups are dense convolutions.

In those two, an image smaller than the kernel is multiplied by the kernel's unrolled matrix. The remaining dense k x k
convolutions are XLA's. It has two libraries for them and prefers YNNPACK, which is slower than Eigen at most sizes but
is never given dilated images. Hence, in float32, a row of zeros is put between the rows of the image and between those
of the kernel, and the stride is doubled: the sums are the same, and Eigen skips the zeros.

The derivative is a `jax.custom_jvp` whose tangent is an ordinary linear function: forward mode, reverse mode, `vmap`
and higher derivatives follow from it (a `custom_vjp` would rule out forward mode).
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

LAYOUT = ("NHWC", "HWIO", "NHWC")
TRANSPOSED = ("NHWC", "HWOI", "NHWC")
GROUP_FROM = 4  # channels; with fewer, XLA's own program for groups is faster
BLOCK_CHANNELS = 32  # eight times the work of 4-channel groups, at more than eight times their speed
BLOCKS = 16  # about the most: the compile time of more and smaller ones outweighs their gain
UNROLLED_LIMIT = 8  # how many times the kernel's size its unrolled matrix may have
EIGEN_FROM = 17  # channels; with fewer, Eigen is slow on dilated images
EIGEN_FROM_IMAGES = 4  # the channels of a kernel's gradient; there fewer are enough, as the sums over pixels are longer
PIXELS_PER_STEP = 1024  # of the output, with groups; 28x28 images go one at a time, 7x7 images sixteen at a time


class _Window(NamedTuple):
    """The parameters of a convolution; hashable, so that they are static under every transformation.

    `is_tangent`: the convolution is a tangent with respect to its input, so in reverse mode its transpose runs.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any
    is_tangent: bool = False


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

    Takes the same arguments and raises the same errors. Calls with any other layout, a dilated input, or a requested
    result type or sharding are passed on unchanged.
    """
    options = {
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "out_sharding": out_sharding,
    }
    ours = (
        inputs.ndim == 4
        and jnp.issubdtype(inputs.dtype, jnp.floating)
        and lax.conv_dimension_numbers(inputs.shape, kernel.shape, dimension_numbers)
        == lax.conv_dimension_numbers(inputs.shape, kernel.shape, LAYOUT)
        and set(lhs_dilation or (1,)) == {1}
        and batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
    )
    convolution = partial(lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if not ours:
        return convolution(inputs, kernel)
    jax.eval_shape(convolution, inputs, kernel)  # raises lax's own errors
    strides = tuple(window_strides)
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        extent = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(inputs.shape[1:3], extent, strides, padding)
    window = _Window(strides, tuple((low, high) for low, high in padding), dilation, feature_group_count, precision)
    inputs, kernel = _vary_together(inputs, kernel)
    return _convolve(inputs, kernel, window)


def _vary_together(*arrays: jax.Array) -> list[jax.Array]:
    """Inside `shard_map`, makes all arrays vary over the same mesh axes, so that a replicated kernel's gradient is
    summed over the devices once, outside the loop over images below."""
    axes = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))
    return [
        lax.pcast(array, tuple(missing), to="varying")
        if (missing := axes - jax.typeof(array).manual_axis_type.varying)
        else array
        for array in arrays
    ]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    if _is_pointwise(kernel, window):
        cpu = _pointwise
    elif window.groups == 1:
        cpu = _dense
    elif kernel.shape[2] >= GROUP_FROM:
        cpu = _channel_blocks
    else:
        return _xla(x, kernel, window)
    return lax.platform_dependent(x, kernel, cpu=_bound(cpu, window), default=_bound(_xla, window))


@partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(window, primals, tangents):
    x, kernel = primals
    dx, dkernel = tangents
    y = _convolve(x, kernel, window)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_convolve(dx, kernel, window._replace(is_tangent=True)))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(
            lax.platform_dependent(x, dkernel, cpu=_bound(_kernel_tangent, window), default=_bound(_xla, window))
        )
    return y, (sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y))


@cache
def _bound(form: Callable[..., jax.Array], window: _Window) -> Callable[..., jax.Array]:
    """The same object for the same window, so that JAX recognises what it has traced before."""
    return partial(form, window=window)


def _xla(
    x: jax.Array,
    kernel: jax.Array,
    window: _Window,
    layout: tuple[str, str, str] = LAYOUT,
    image_dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        lhs_dilation=image_dilation,
        rhs_dilation=window.dilation,
        dimension_numbers=layout,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def _is_pointwise(kernel: jax.Array, window: _Window) -> bool:
    return kernel.shape[:2] == (1, 1) and window.groups == 1 and window.padding == ((0, 0), (0, 0))


def _dense(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    if _is_image_smaller_than_kernel(x, kernel, window):
        return _unrolled(x, kernel, window)
    form = partial(_rows_apart if _gains_by_eigen(x, kernel, window) else _xla, window=window)
    if window.is_tangent:
        # Its transpose then has the one kernel layout that XLA's libraries read. XLA converts any other layout to that
        # one, except inside a loop or a called function, where it falls back to a plain loop.
        return form(x, kernel.swapaxes(2, 3), layout=TRANSPOSED)
    return form(x, kernel)


def _is_image_smaller_than_kernel(x: jax.Array, kernel: jax.Array, window: _Window) -> bool:
    """Whether XLA would use neither Eigen nor YNNPACK but a plain loop, up to two hundred times slower."""
    inputs, outputs, taps = x.shape[1:3], _output_size(x, kernel, window), kernel.shape[:2]
    images = (inputs, outputs) if window.is_tangent else (inputs,)  # its transpose convolves the output
    if all(size >= tap for image in images for size, tap in zip(image, taps, strict=True)):
        return False
    return 0 < math.prod(inputs + outputs) <= UNROLLED_LIMIT * math.prod(taps)


def _gains_by_eigen(x: jax.Array, kernel: jax.Array, window: _Window) -> bool:
    # In float64 XLA would use a plain loop instead of Eigen, twenty times slower than YNNPACK. The transpose of a
    # strided convolution dilates the image, so that Eigen gets it anyway.
    has_stride = window.strides != (1, 1)
    return x.dtype == jnp.float32 and kernel.shape[2] >= EIGEN_FROM and not (has_stride and window.is_tangent)


def _rows_apart(x: jax.Array, kernel: jax.Array, window: _Window, layout: tuple[str, str, str] = LAYOUT) -> jax.Array:
    """`_xla` with a row of zeros between the rows of the image and of the kernel, at twice the stride."""
    (stride, across), (dilation, along), ((low, high), columns) = window.strides, window.dilation, window.padding
    apart = window._replace(
        strides=(2 * stride, across), dilation=(2 * dilation, along), padding=((2 * low, 2 * high), columns)
    )
    return _xla(x, kernel, apart, layout, image_dilation=(2, 1))


def _unrolled(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Whole images in one product, with a matrix of the taps that connect every input to every output pixel."""
    outputs = _output_size(x, kernel, window)
    (sh, sw), (dh, dw) = window.strides, window.dilation
    (top, _), (left, _) = window.padding
    zero = jnp.zeros((), kernel.dtype)
    kernel = lax.pad(kernel, zero, ((0, 0, dh - 1), (0, 0, dw - 1), (0, 0, 0), (0, 0, 0)))

    def placed(offset: int, axis: int) -> tuple[int, int, int]:
        return offset, x.shape[axis + 1] - offset - kernel.shape[axis], 0

    columns = [
        lax.pad(kernel, zero, (placed(r * sh - top, 0), placed(c * sw - left, 1), (0, 0, 0), (0, 0, 0)))
        for r in range(outputs[0])
        for c in range(outputs[1])
    ]
    matrix = jnp.stack(columns, 3).reshape(math.prod(x.shape[1:]), -1)
    y = lax.dot(x.reshape(x.shape[0], -1), matrix, precision=window.precision)
    return y.reshape(x.shape[0], *outputs, kernel.shape[3])


def _pointwise(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    x = x[:, :: window.strides[0], :: window.strides[1]]
    return _contract(x, kernel[0, 0], window)


def _channel_blocks(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Groups in blocks (a wide group alone), each a dense convolution with a kernel that is zero between its groups."""
    kh, kw, channels, features = kernel.shape
    groups = window.groups
    limit = max(BLOCK_CHANNELS, x.shape[3] // BLOCKS) // channels
    size = next((n for n in range(limit, 1, -1) if groups % n == 0), 1)
    blocks = groups // size
    kernel = kernel.reshape(kh, kw, 1, channels, blocks, size, features // groups)
    between = jnp.eye(size, dtype=kernel.dtype).reshape(1, 1, size, 1, 1, size, 1)
    kernel = (kernel * between).reshape(kh, kw, size * channels, features)
    dense = window._replace(groups=1)
    inputs = lax.split(x, [x.shape[3] // blocks] * blocks, 3)
    kernels = lax.split(kernel, [features // blocks] * blocks, 3)
    return jnp.concatenate([_dense(*block, dense) for block in zip(inputs, kernels, strict=True)], 3)


# The convolution as a linear function of the kernel; JAX's transpose of it is the kernel's gradient.


def _kernel_tangent(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """`_xla`, written so that its transpose with respect to the kernel is fast."""
    if _is_pointwise(kernel, window):
        return _pointwise(x, kernel, window)
    dtype = x.dtype
    if jnp.finfo(dtype).bits < 32:  # so the gradient is summed over the images in float32, and rounded once
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    if 0 in (x.shape[0], *_output_size(x, kernel, window)):
        return _xla(x, kernel, window).astype(dtype)
    form = _tangent_of_one_group if window.groups == 1 else _tangent_of_groups
    return form(x, kernel, window).astype(dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)  # keep the images, not their transposed copy
def _tangent_of_one_group(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """The transpose of the gradient, which is a convolution itself: of the images with the output's gradient.

    In it the channels are what the images are elsewhere, the images the channels, and the output's gradient the kernel.
    """
    # XLA would turn the transposed arrays into a convolution of another layout, which its libraries do not read.
    channels_first = lax.optimization_barrier(x.transpose(3, 1, 2, 0))

    def gradient(dy: jax.Array) -> jax.Array:
        dy = lax.optimization_barrier(dy.transpose(1, 2, 0, 3))
        form = _rows_apart if x.dtype == jnp.float32 and x.shape[0] >= EIGEN_FROM_IMAGES else _xla
        return form(channels_first, dy, _window_of_gradient(x, kernel, window)).transpose(1, 2, 0, 3)

    outputs = jax.eval_shape(_bound(_xla, window), x, kernel)
    return jax.linear_transpose(gradient, outputs)(kernel)[0]


def _window_of_gradient(x: jax.Array, kernel: jax.Array, window: _Window) -> _Window:
    """Strides and dilations change places; the padding after the image is what leaves as many outputs as taps."""
    padding = tuple(
        (low, (taps - 1) * dilation + (outputs - 1) * stride + 1 - size - low)
        for size, outputs, taps, (low, _), dilation, stride in zip(
            x.shape[1:3],
            _output_size(x, kernel, window),
            kernel.shape[:2],
            window.padding,
            window.dilation,
            window.strides,
            strict=True,
        )
    )
    return window._replace(strides=window.dilation, padding=padding, dilation=window.strides)


def _tangent_of_groups(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """A few images at a time, so that the taps' copies of them stay in the cache."""
    outputs = _output_size(x, kernel, window)

    @partial(jax.checkpoint, prevent_cse=False)  # keep the images, not their shifted copies
    def step(_, images):
        return _, _tap_products(images, kernel, window, outputs)

    # Several small images at a time: the products are larger, and the gradient is accumulated less often.
    count = _largest_divisor(x.shape[0], PIXELS_PER_STEP // (outputs[0] * outputs[1]))
    y = lax.scan(step, None, x.reshape(-1, count, *x.shape[1:]))[1]
    return y.reshape(x.shape[0], *y.shape[2:])


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


def _output_size(x: jax.Array, kernel: jax.Array, window: _Window) -> tuple[int, ...]:
    return tuple(
        (size + low + high - (taps - 1) * dilation - 1) // stride + 1
        for size, (low, high), taps, dilation, stride in zip(
            x.shape[1:3], window.padding, kernel.shape[:2], window.dilation, window.strides, strict=True
        )
    )


def _pad(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Zeros before and after; a negative number crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _shifts(x: jax.Array, axis: int, taps: int, outputs: int, window: _Window) -> list[jax.Array]:
    """The inputs of each tap along an axis: x from the tap's offset on, at the stride."""
    stride, dilation = window.strides[axis - 1], window.dilation[axis - 1]
    span = (outputs - 1) * stride + 1
    return [lax.slice_in_dim(x, t * dilation, t * dilation + span, stride, axis) for t in range(taps)]


def _contract(x: jax.Array, matrix: jax.Array, window: _Window) -> jax.Array:
    # With the pixels in one dimension, the transpose with respect to the matrix is a product that reads x in place;
    # with three, XLA first makes a transposed copy of the output's gradient.
    y = lax.dot_general(x.reshape(-1, x.shape[3]), matrix, (((1,), (0,)), ((), ())), precision=window.precision)
    return y.reshape(*x.shape[:3], matrix.shape[1])


def _tap_products(x: jax.Array, kernel: jax.Array, window: _Window, outputs: tuple[int, ...]) -> jax.Array:
    """For every tap, a batch of products, one per group."""
    kh, kw, channels, features = kernel.shape
    groups = window.groups
    kernel = kernel.reshape(kh, kw, channels, groups, features // groups)
    y = jnp.zeros((), x.dtype)
    for i, rows in enumerate(_shifts(_pad(x, *window.padding), 1, kh, outputs[0], window)):
        for j, part in enumerate(_shifts(rows, 2, kw, outputs[1], window)):
            part = part.reshape(*part.shape[:3], groups, channels)
            y = y + jnp.einsum("nhwgc,cgo->nhwgo", part, kernel[i, j], precision=window.precision)
    return y.reshape(*y.shape[:3], features)
