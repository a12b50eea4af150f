"""The convolution's fast forms against XLA's own, under every transformation."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax import ARCHITECTURES, create_model
from resnet_flax.layers.conv_gradients import (
    _gains_by_eigen,
    _rows_apart,
    _Window,
    _xla,
    conv_general_dilated,
)
from tests.numerics import assert_as_exact_as

LAYOUT = ("NHWC", "HWIO", "NHWC")

# height, width, channels, features, kernel, stride, padding, dilation, groups
SHAPES = [
    (8, 7, 3, 4, 3, 1, 1, 1, 1),
    (9, 8, 4, 6, 3, 2, 1, 1, 2),
    (7, 9, 3, 5, 1, 2, 0, 1, 1),
    (9, 10, 3, 5, 7, 2, 3, 1, 1),
    (10, 11, 4, 4, 3, 1, 2, 2, 1),
    (8, 8, 4, 8, 3, 1, 1, 1, 4),
    (9, 8, 2, 2, 4, 3, 1, 1, 1),
    (7, 8, 1, 3, 2, 1, 0, 1, 1),
    (8, 9, 2, 3, 5, 1, 2, 1, 1),
    (9, 11, 3, 4, 6, 2, 2, 1, 1),
    (9, 7, 2, 4, 7, 1, 3, 1, 2),
]

# Smaller than the kernel: the input, or (stride) only the output; small groups. And two that XLA does well.
TINY = [
    (2, 2, 3, 4, 3, 1, 1, 1, 1),
    (1, 1, 4, 5, 3, 1, 1, 1, 1),
    (4, 3, 3, 5, 3, 2, 1, 1, 1),
    (2, 3, 2, 3, 5, 2, 2, 1, 1),
    (2, 1, 32, 32, 3, 1, 1, 1, 4),
    (4, 3, 2, 3, 3, 1, 2, 2, 1),
    (1, 2, 3, 2, 2, 1, 4, 1, 1),
]


def _case(shape, dtype=np.float64):
    height, width, channels, features, k, stride, padding, dilation, groups = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, channels)).astype(dtype)
    kernel = rng.normal(size=(k, k, channels // groups, features)).astype(dtype)
    options = {
        "window_strides": (stride, stride),
        "padding": ((padding, padding), (padding, padding)),
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": LAYOUT,
        "feature_group_count": groups,
    }
    return x, kernel, options


def _derivatives(conv, options):
    """Output, both gradients, a tangent, second derivatives, per-example kernel gradients."""

    def f(x, kernel):
        return conv(x, kernel, **options)

    def squares(x, kernel):
        return jnp.sin(f(x, kernel)).sum()

    def gradient_norm(x, kernel):
        return sum(jnp.sin(g).sum() for g in jax.grad(squares, (0, 1))(x, kernel))

    def run(x, kernel):
        return (
            f(x, kernel),
            jax.grad(squares, (0, 1))(x, kernel),
            jax.jvp(f, (x, kernel), (x * 0.3, kernel * 0.7))[1],
            jax.grad(gradient_norm, (0, 1))(x, kernel),
            jax.vmap(jax.grad(lambda kernel, x: squares(x[None], kernel)), (None, 0))(kernel, x),
        )

    return jax.jit(run)


@pytest.mark.unoptimized
@pytest.mark.parametrize("shape", SHAPES + TINY, ids=str)
def test_equals_xla_in_float64(shape):
    with jax.enable_x64(True):
        x, kernel, options = _case(shape)
        ours = _derivatives(conv_general_dilated, options)(x, kernel)
        xla = _derivatives(jax.lax.conv_general_dilated, options)(x, kernel)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(xla), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.unoptimized
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "groups"), [(48, 6), (96, 2)], ids=["blocks of 3 groups", "wide groups"])
def test_blocks_of_groups_equal_xla(stride, channels, groups):
    """From 4 channels on: six groups of 8, by threes (four do not divide them); and groups wider than a block."""
    with jax.enable_x64(True):
        x, kernel, options = _case((5, 4, channels, 12, 3, stride, 1, 1, groups))
        ours = _derivatives(conv_general_dilated, options)(x, kernel)
        xla = _derivatives(jax.lax.conv_general_dilated, options)(x, kernel)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(xla), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("shape", TINY[:5], ids=str)
def test_xla_has_no_small_image_left(shape):
    """XLA computes a convolution of an image smaller than the kernel, also a transposed one, in a plain loop."""
    x, kernel, options = _case(shape, np.float32)
    text = _gradients(conv_general_dilated, options).lower(x, kernel).as_text()
    # Its two operands: an image (N, H, W, C) and a kernel (h, w, C, out).
    sizes = re.findall(r"stablehlo.convolution.* : \(tensor<\d+x(\d+)x(\d+)x\S+, tensor<(\d+)x(\d+)x", text)
    assert len(sizes) == text.count("stablehlo.convolution")
    small = [size for size in sizes if int(size[0]) < int(size[2]) or int(size[1]) < int(size[3])]
    assert not small or shape[5] == 2  # with a stride the forward pass may be larger


@pytest.mark.unoptimized
@pytest.mark.parametrize("shape", [shape for shape in SHAPES + TINY if shape[-1] == 1], ids=str)
def test_rows_apart_change_nothing(shape):
    """The form is for float32; in float64 it shows that only rounding could differ."""
    with jax.enable_x64(True):
        x, kernel, options = _case(shape)
        window = _Window(
            options["window_strides"], options["padding"], options["rhs_dilation"], 1, None, is_tangent=False
        )
        ours, our_pullback = jax.vjp(lambda x: _rows_apart(x, kernel, window), jnp.asarray(x))
        xla, xla_pullback = jax.vjp(lambda x: _xla(x, kernel, window), jnp.asarray(x))
        np.testing.assert_allclose(ours, xla, rtol=0, atol=1e-12 * np.abs(xla).max())
        ours, xla = our_pullback(jnp.sin(xla))[0], xla_pullback(jnp.sin(xla))[0]
        np.testing.assert_allclose(ours, xla, rtol=0, atol=1e-12 * np.abs(xla).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_float32_equals_xla_to_rounding(stride):
    x, kernel, options = _case((8, 7, 20, 24, 3, stride, 1, 1, 1), np.float32)
    kernel *= 0.05  # outputs of about 0.6, where the sine is smooth
    assert _gains_by_eigen(x, kernel, _Window((stride, stride), ((1, 1), (1, 1)), (1, 1), 1, None))
    ours = _derivatives(conv_general_dilated, options)(x, kernel)
    assert_as_exact_as(ours, _derivatives(jax.lax.conv_general_dilated, options), x, kernel)


def _gradients(conv, options):
    def loss(x, kernel):
        return jnp.sin(conv(x, kernel, **options)).sum(dtype=jnp.float64 if x.dtype == jnp.float64 else jnp.float32)

    return jax.jit(jax.grad(loss, (0, 1)))


LOOPS = {
    "called": jax.jit,
    "in a loop": lambda f: lambda x, kernel: jax.lax.map(lambda images: f(images, kernel), x[None])[0],
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_in_loops_keep_to_the_libraries(loop, stride, groups):
    """There XLA leaves the kernel's layout as it is, and only (height, width, in, out) is one that its libraries read;
    any other takes a plain loop, ten times slower and more."""
    x, kernel, options = _case((9, 8, 64, 64, 3, stride, 1, 1, groups), np.float32)
    convolution = LOOPS[loop](lambda x, kernel: conv_general_dilated(x, kernel, **options))
    gradient = jax.jit(jax.grad(lambda x, kernel: jnp.sin(convolution(x, kernel)).sum()))
    layouts = set(re.findall(r"dim_labels=(\w+->\w+)", gradient.lower(x, kernel).compile().as_text()))
    assert layouts == {"b01f_01io->b01f"}


@pytest.mark.parametrize("shape", SHAPES[:2], ids=["dense", "groups"])
@pytest.mark.parametrize("batch", [16, 15, 1, 0])
def test_every_batch_size(shape, batch):
    """With groups, images are taken several at a time, so many as divide the batch."""
    _, kernel, options = _case(shape)
    x = np.random.default_rng(1).normal(size=(batch, 6, 5, shape[2])).astype(np.float32)
    kernel = kernel.astype(np.float32)
    ours = _gradients(conv_general_dilated, options)(x, kernel)
    assert_as_exact_as(ours, _gradients(jax.lax.conv_general_dilated, options), x, kernel)


@pytest.mark.parametrize("shape", [*SHAPES[:3], *TINY[:3]], ids=str)
def test_bfloat16_is_no_worse_than_xla(shape):
    x, kernel, options = _case(shape, np.float32)
    half = [jnp.asarray(array, jnp.bfloat16) for array in (x, kernel)]
    ours = _gradients(conv_general_dilated, options)(*half)
    assert {gradient.dtype for gradient in ours} == {jnp.dtype(jnp.bfloat16)}
    assert_as_exact_as(ours, _gradients(jax.lax.conv_general_dilated, options), *half, precision="bfloat16")


@pytest.mark.parametrize("shape", SHAPES + TINY, ids=str)
def test_a_program_for_a_gpu_holds_xlas_convolutions(shape):
    x, kernel, options = _case(shape, np.float32)

    def operations(conv):
        text = _gradients(conv, options).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
        return [text.count(f"stablehlo.{name}") for name in ("convolution", "dot_general", "while", "concatenate")]

    assert operations(conv_general_dilated) == operations(jax.lax.conv_general_dilated)


def test_memory_is_not_spent_on_shifted_copies():
    """What the forward pass keeps for the backward pass is the input, once."""
    x, kernel, options = _case((16, 16, 8, 8, 3, 1, 1, 1, 1), np.float32)
    _, pullback = jax.vjp(lambda kernel: conv_general_dilated(x, kernel, **options), kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback)) <= x.size + kernel.size


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_string_padding(padding):
    x, kernel, options = _case(SHAPES[1], np.float32)
    options["padding"] = padding
    ours = _gradients(conv_general_dilated, options)(x, kernel)
    assert_as_exact_as(ours, _gradients(jax.lax.conv_general_dilated, options), x, kernel)


def test_other_convolutions_are_lax_own():
    x = np.ones((2, 3, 8), np.float32)
    one_dimensional = {"window_strides": (1,), "padding": "SAME"}
    kernel = np.ones((4, 3, 3), np.float32)
    np.testing.assert_array_equal(
        conv_general_dilated(x, kernel, **one_dimensional), jax.lax.conv_general_dilated(x, kernel, **one_dimensional)
    )


def test_errors_are_lax_own():
    x, kernel, options = _case(SHAPES[0], np.float32)
    with pytest.raises(ValueError, match="feature"):
        conv_general_dilated(x, kernel[:, :, :2], **options)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, PartitionSpec as P
from resnet_flax.layers.conv_gradients import conv_general_dilated

rng = np.random.default_rng(0)
x, kernel = (rng.normal(size=shape) for shape in ((16, 6, 5, 3), (3, 3, 3, 4)))
options = dict(window_strides=(2, 2), padding=((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
def gradient(conv):
    return jax.grad(lambda kernel, x: jnp.sin(conv(x, kernel, **options)).sum())
mesh = Mesh(np.array(jax.devices()), ("data",))
sharded = jax.jit(jax.shard_map(gradient(conv_general_dilated), mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
expected = gradient(jax.lax.conv_general_dilated)(kernel, x)
np.testing.assert_allclose(sharded(kernel, x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
reduces = sharded.lower(kernel, x).compile().as_text().count(" all-reduce(")
assert reduces == 1, reduces
"""


def test_in_shard_map_the_gradient_is_summed_once():
    result = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_convolution_of_the_family(name):
    """Kernel gradients in float64, at the published channels and on small images."""
    from flax import nnx

    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    shapes = {
        (9, 8, conv.in_features, conv.out_features, conv.kernel_size[0], conv.strides[0], conv.padding[0][0],
         conv.kernel_dilation[0], conv.feature_group_count)
        for _, conv in nnx.iter_modules(model) if isinstance(conv, nnx.Conv)
    }  # fmt: skip
    assert shapes
    with jax.enable_x64(True):
        for shape in sorted(shapes):
            x, kernel, options = _case(shape)
            ours, xla = (
                _gradients(conv, options)(x, kernel) for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
            )
            for a, b in zip(ours, xla, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max(), err_msg=str(shape))
