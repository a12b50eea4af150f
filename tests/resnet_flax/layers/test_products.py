"""Products and their moments, and the norm behind a 1x1 convolution computed from the convolution's input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnet_flax.layers import (
    BatchNorm,
    Conv,
    activation,
    conv_norm,
    normalization,
    relu_before_product,
    residual_relu,
)
from resnet_flax.layers.products import product, product_moments
from tests.numerics import assert_as_exact_as, assert_rounded, gamma

torch = pytest.importorskip("torch", reason="compares with PyTorch")


def arrays(*shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(0.5, 1, shape), dtype) for shape in shapes)


def direct_moments(x, kernel):
    y = x @ kernel
    axes = tuple(range(x.ndim - 1))
    return y.mean(axes), jnp.square(y).mean(axes)


@pytest.mark.unoptimized
@pytest.mark.parametrize(("ours", "direct"), [(product, jnp.matmul), (product_moments, direct_moments)])
def test_values_and_derivatives_of_both_modes_equal_the_plain_ones(ours, direct):
    with jax.enable_x64(True):
        x, kernel, dx, dkernel = arrays((3, 5, 4, 6), (6, 8), (3, 5, 4, 6), (6, 8))

        def scalar(function):
            return lambda x, kernel: sum(jnp.sin(y).sum() for y in jax.tree.leaves(function(x, kernel)))

        for mode in (
            lambda f: f(x, kernel),
            lambda f: jax.grad(scalar(f), (0, 1))(x, kernel),
            lambda f: jax.jvp(f, (x, kernel), (dx, dkernel)),
            lambda f: jax.hessian(scalar(f), 1)(x, kernel),
            lambda f: jax.vmap(jax.grad(scalar(f)), (0, None))(x, kernel),
        ):
            for a, b in zip(jax.tree.leaves(mode(ours)), jax.tree.leaves(mode(direct)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_gradient_of_a_bfloat16_products_kernel_is_summed_in_float32():
    x, kernel, g = arrays((2, 9, 7, 4), (4, 3), (2, 9, 7, 3), dtype=np.float32)
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    ours = jax.grad(lambda kernel: (product(x, kernel).astype(jnp.float32) * g.astype(jnp.float32)).sum())(kernel)
    truth = np.einsum("nhwi,nhwo->io", np.asarray(x, np.float64), np.asarray(g, np.float64))
    assert ours.dtype == jnp.float32
    sizes = np.einsum("nhwi,nhwo->io", *(np.abs(np.asarray(array, np.float64)) for array in (x, g)))
    assert_rounded(ours, truth, 2 * 9 * 7, sizes)  # a sum rounded to bfloat16 would be off by up to 2^-8


def random_norm(features, param_dtype):
    norm = BatchNorm(features, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    (scale, bias) = arrays((features,), (features,), seed=3, dtype=param_dtype)
    norm.scale[...], norm.bias[...] = scale, bias
    return norm


@pytest.mark.unoptimized
@pytest.mark.parametrize("stride", [1, 2])
def test_folded_norm_equals_torch_in_float64(stride, monkeypatch):
    """The formulas that bfloat16 uses, in float64: output, gradients and statistics."""
    monkeypatch.setattr(normalization, "_COARSE", jnp.float64)
    with jax.enable_x64(True):
        conv = Conv(6, 8, 1, stride=stride, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
        norm = random_norm(8, jnp.float64)
        x, weights = arrays((3, 5, 4, 6), (3, *(-(-size // stride) for size in (5, 4)), 8))

        theirs = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 1, stride, bias=False), torch.nn.BatchNorm2d(8)).double()
        with torch.no_grad():
            theirs[0].weight.copy_(torch.tensor(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)))
            theirs[1].weight.copy_(torch.tensor(np.asarray(norm.scale[...])))
            theirs[1].bias.copy_(torch.tensor(np.asarray(norm.bias[...])))
        inputs = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
        expected = theirs(inputs)
        (expected * torch.tensor(np.asarray(weights).transpose(0, 3, 1, 2))).sum().backward()

        def loss(conv, norm, x):
            y = conv_norm(conv, norm, x)
            return (y * weights).sum(), y

        grad = nnx.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, y), (conv_grad, norm_grad, x_grad) = grad(conv, norm, x)
        for ours, reference in [
            (y, expected.detach().permute(0, 2, 3, 1)),
            (x_grad, inputs.grad.permute(0, 2, 3, 1)),
            (conv_grad["kernel"][...], theirs[0].weight.grad.permute(2, 3, 1, 0)),
            (norm_grad["scale"][...], theirs[1].weight.grad),
            (norm_grad["bias"][...], theirs[1].bias.grad),
            (norm.mean[...], theirs[1].running_mean),
            (norm.var[...], theirs[1].running_var),
        ]:
            np.testing.assert_allclose(ours, reference.numpy(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("offset", [0, 3])
def test_folding_costs_bfloat16_little_accuracy(offset):
    """On the same bfloat16 images the output is as close to float64 as that of norm(conv(x)), and the statistics, which
    never see a rounded product, are those of float32."""
    x, kernel = arrays((8, 6, 5, 16), (1, 1, 16, 24), dtype=np.float32)
    x = (x + offset).astype(jnp.bfloat16)

    def layers(dtype):
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        conv = Conv(16, 24, 1, dtype=dtype, param_dtype=wide, rngs=nnx.Rngs(0))
        conv.kernel[...] = kernel.astype(wide)
        return conv, random_norm(24, wide)

    def outputs(x):
        conv, norm = layers(x.dtype)
        return norm(conv(x))

    def running_mean(x):
        conv, norm = layers(x.dtype)
        norm(conv(x))
        return norm.mean[...]

    conv, folded = layers(jnp.bfloat16)
    assert_as_exact_as(conv_norm(conv, folded, x), outputs, x, precision="bfloat16")
    assert_as_exact_as(folded.mean[...], running_mean, x.astype(jnp.float32))

    # The variance is a difference of two moments, sums of 240 and then 16 terms, whose rounding errors grow like the
    # square root of their number.
    wide, weights = np.asarray(x, np.float64).reshape(240, 16), np.asarray(kernel[0, 0], np.float64)
    moments = 2 * np.square(np.abs(wide) @ np.abs(weights)).mean(0)
    unbiased = 0.1 * 240 / 239
    error = np.abs(folded.var[...] - (0.9 + unbiased * (wide @ weights).var(0)))
    assert (error <= np.sqrt(240 + 16) * gamma(1) * unbiased * moments).all()


def test_a_compiled_step_never_computes_the_folded_convolutions_output():
    conv, norm = Conv(4, 16, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), BatchNorm(16, rngs=nnx.Rngs(0))
    graph, state = nnx.split((conv, norm))

    def run(state, x, together):
        conv, norm = nnx.merge(graph, state, copy=True)
        return conv_norm(conv, norm, x) if together else norm(conv(x))

    x = jnp.ones((2, 3, 5, 4), jnp.bfloat16)
    lowered = {
        together: jax.jit(run, static_argnums=2).trace(state, x, together).lower(lowering_platforms=("cuda",)).as_text()
        for together in (True, False)
    }
    assert "stablehlo.convolution" in lowered[False]
    assert "stablehlo.convolution" not in lowered[True]


@pytest.mark.unoptimized
@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "groups": 2}, {"kernel_size": 1, "use_bias": True}]
)
def test_other_convolutions_are_not_folded(options):
    conv = Conv(4, 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **options)
    x = arrays((2, 3, 5, 4), dtype=np.float32)[0].astype(jnp.bfloat16)
    together, apart = BatchNorm(8, rngs=nnx.Rngs(0)), BatchNorm(8, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(conv_norm(conv, together, x), apart(conv(x)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("keeps_both", [None, False, True])
def test_both_relus_equal_jaxs_in_both_modes(dtype, keeps_both, monkeypatch):
    """The one of the sum of branches (None), and the one before a product as it is with either compiler."""
    monkeypatch.setattr(activation, "_XLA_KEEPS_BOTH", keeps_both)
    relu = residual_relu if keeps_both is None else relu_before_product
    x = jnp.asarray([-2.0, -0.0, 0.0, 0.5, 3.0, jnp.nan], dtype)
    dx = jnp.arange(1, 7, dtype=dtype)
    for transform in (
        lambda f: f(x),
        lambda f: jax.jvp(f, (x,), (dx,))[1],
        lambda f: jax.vjp(f, x)[1](dx)[0],
        lambda f: jax.vmap(jax.grad(lambda x: f(x) * jnp.asarray(2, dtype)))(x),
    ):
        ours, theirs = (np.asarray(transform(f), np.float32) for f in (relu, jax.nn.relu))
        np.testing.assert_array_equal(ours, theirs)


def test_of_a_relu_before_a_product_the_output_alone_is_kept(monkeypatch):
    """Where the compiler would keep both: the gradient is masked by the output."""

    def has_barrier(dtype):
        program = jax.make_jaxpr(lambda x: relu_before_product(x))(jnp.zeros((2, 3), dtype))
        return "optimization_barrier" in str(program)

    for keeps_both in (False, True):
        monkeypatch.setattr(activation, "_XLA_KEEPS_BOTH", keeps_both)
        assert has_barrier(jnp.bfloat16) == keeps_both
        assert not has_barrier(jnp.float32)
