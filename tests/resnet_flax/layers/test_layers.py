"""Each layer against torch.nn's, in the settings where the frameworks differ."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm, Conv, Linear, Sequential, max_pool

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from parity import to_flax
from tests.compilation import assert_compiles_once
from tests.numerics import assert_rounded, assert_rounded_once
from tests.torch_models import nchw


def as_nhwc(tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def assert_same_conv(ours, original, images):
    """A float64 convolution against torch's: two sums of the same products, and a bias, in whatever order."""
    x = nchw(images, torch.float64)
    sizes = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in sizes.parameters():
            parameter.abs_()
    terms = math.prod(original.weight.shape[1:]) + 1
    assert_rounded(ours, as_nhwc(original(x)), 2 * terms, as_nhwc(sizes(x.abs())), np.float64)


@pytest.mark.unoptimized
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (9, 12)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "bias"),
    [
        (3, 2, 1, 1, 1, False),
        (7, 2, 3, 1, 1, True),
        (1, 2, 0, 1, 1, False),
        (3, 1, 2, 2, 2, True),
        (3, 1, 1, 1, 6, False),
    ],
)
def test_conv_equals_torch_in_float64(kernel, stride, padding, dilation, groups, bias, height, width):
    original = torch.nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups, bias).double()
    images = parity.random_inputs((2, height, width, 6))
    with jax.enable_x64(True):
        conv = Conv(
            6, 12, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, use_bias=bias,
            param_dtype=jnp.float64, rngs=nnx.Rngs(0),
        )  # fmt: skip
        ours = to_flax(original.state_dict(), conv)(jnp.asarray(images, jnp.float64))
    assert_same_conv(ours, original, images)


def test_conv_pads_two_axes_by_their_own_amounts():
    original = torch.nn.Conv2d(3, 4, (3, 5), (2, 1), (1, 2), bias=False).double()
    images = parity.random_inputs((2, 6, 8, 3))
    with jax.enable_x64(True):
        conv = Conv(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        ours = to_flax(original.state_dict(), conv)(jnp.asarray(images, jnp.float64))
    assert_same_conv(ours, original, images)


def test_conv_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="groups=4 must divide in_features=6"):
        Conv(6, 12, 3, groups=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (112, 6)])
def test_max_pool_equals_torch_on_negative_input(size):
    images = parity.random_inputs((2, *size, 3)) - 10  # padding with zeros would win everywhere
    expected = torch.nn.functional.max_pool2d(nchw(images), 3, 2, 1)
    np.testing.assert_array_equal(max_pool(jnp.asarray(images), 3, stride=2, padding=1), as_nhwc(expected))


def test_a_convolution_and_a_max_pool_compile_once():
    conv = Conv(3, 4, 3, stride=2, padding=1, rngs=nnx.Rngs(0))
    x = parity.random_inputs((2, 9, 8, 3))
    for function in (conv, lambda x: max_pool(x, 3, stride=2, padding=1)):
        gradient = jax.jit(jax.grad(lambda x, function=function: jnp.sin(function(x)).sum()))
        assert_compiles_once(lambda gradient=gradient: gradient(x))


def batch_norm_pair(channels: int):
    original = torch.nn.BatchNorm2d(channels).double()
    parity.randomize(None, original)
    norm = BatchNorm(channels, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    return original, to_flax(copy.deepcopy(original.state_dict()), norm)


@pytest.mark.unoptimized
def test_batch_norm_train_mode_equals_torch_in_float64():
    """Outputs, the gradients of input, scale and bias, and the running statistics after three batches of n = 12."""
    with jax.enable_x64(True):
        original, norm = batch_norm_pair(5)
        original.train(), norm.train()
        for seed in range(3):
            images = parity.random_inputs((2, 2, 3, 5), seed=seed)
            weights = parity.random_inputs((2, 2, 3, 5), seed=seed + 10).astype(np.float64)
            x = nchw(images, torch.float64).requires_grad_()
            original.zero_grad()
            expected = original(x)
            (expected * nchw(weights, torch.float64)).sum().backward()

            def loss(norm, x, weights=weights):
                y = norm(x)
                return (y * weights).sum(), y

            grad = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            (_, y), (norm_grads, x_grad) = grad(norm, jnp.asarray(images, jnp.float64))
            for ours, theirs in [
                (y, as_nhwc(expected)),
                (x_grad, as_nhwc(x.grad)),
                (norm_grads["scale"][...], original.weight.grad),
                (norm_grads["bias"][...], original.bias.grad),
                (norm.mean[...], original.running_mean),
                (norm.var[...], original.running_var),
            ]:
                np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-11, atol=1e-12)
        assert int(norm.num_batches_tracked[...]) == int(original.num_batches_tracked)


def test_batch_norm_eval_mode_uses_running_statistics_and_keeps_them():
    with jax.enable_x64(True):
        original, norm = batch_norm_pair(5)
        images = parity.random_inputs((2, 4, 3, 5))
        ours = norm(jnp.asarray(images, jnp.float64))
        expected = original.eval()(nchw(images, torch.float64))
        np.testing.assert_allclose(ours, as_nhwc(expected), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(norm.var[...], original.running_var)


def test_batch_norm_variance_does_not_cancel():
    """Mean 1000, standard deviation 0.1, float32: E[x^2] - E[x]^2 gives 0."""
    x = (1000 + 0.1 * np.random.default_rng(0).normal(size=(64, 7, 9, 3))).astype(np.float32)
    norm = BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0))
    norm(jnp.asarray(x))
    truth = x.astype(np.float64).var((0, 1, 2), ddof=1)
    # x - s is exact here, so what is left is the rounding of the mean of n = 4032 squares: about sqrt(n) of the n
    # possible errors in whatever order they are added.
    np.testing.assert_allclose(norm.var[...], truth, rtol=np.sqrt(x[..., 0].size) * np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_batch_norm_computes_in_float32_under_half_precision(dtype):
    """The output is the exact result rounded once, and a few roundings of float32: nothing was rounded before."""
    x = jnp.asarray(parity.random_inputs((4, 6, 5, 8)), dtype)
    try:
        x.astype(jnp.float32)
    except jax.errors.JaxRuntimeError:
        pytest.skip("XLA cannot convert float16 on a processor without F16C")
    norm = BatchNorm(8, dtype=dtype, rngs=nnx.Rngs(0))
    norm.mean[...] = jnp.linspace(-1, 1, 8)
    norm.var[...] = jnp.linspace(0.3, 3, 8)
    norm.eval()
    y = norm(x)
    assert y.dtype == dtype
    assert norm.var.dtype == jnp.float32
    wide, mean, var = (np.asarray(array, np.float64) for array in (x, norm.mean[...], norm.var[...]))
    exact = (wide - mean) / np.sqrt(var + norm.epsilon)
    # Eight in float32: four operations on the way to the factor, and an inverse square root may be off by twice that of
    # a division; three with it.
    assert_rounded_once(y, exact, 8, (np.abs(wide) + np.abs(mean)) / np.sqrt(var + norm.epsilon), dtype)


def test_batch_norm_refuses_a_single_value_per_channel_as_torch_does():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="more than one value per channel, but the input is \\(1, 1, 1, 3\\)"):
        norm(jnp.ones((1, 1, 1, 3)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm2d(3)(torch.ones(1, 3, 1, 1))


def test_synchronised_batch_norm_over_shards_equals_one_over_all():
    with jax.enable_x64(True):
        x = jnp.asarray(parity.random_inputs((6, 3, 4, 5)), jnp.float64) * jnp.linspace(1, 5, 6)[:, None, None, None]
        whole, synced = (
            BatchNorm(5, axis_name=axis, param_dtype=jnp.float64, rngs=nnx.Rngs(0)) for axis in (None, "data")
        )
        expected = whole(x)
        graph, state = nnx.split(synced)

        def apply(x):
            norm = nnx.merge(graph, state, copy=True)
            return norm(x), nnx.state(norm)

        y, states = jax.vmap(apply, axis_name="data")(x.reshape(3, 2, 3, 4, 5))
        np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(nnx.state(whole)), strict=True):
            np.testing.assert_allclose(ours, jnp.broadcast_to(theirs, ours.shape), rtol=1e-12, atol=1e-12)


def test_linear_equals_torch():
    original = torch.nn.Linear(6, 6).double()  # square: a kernel left untransposed would fit
    x = np.random.default_rng(0).normal(size=(3, 6))
    with jax.enable_x64(True):
        linear = to_flax(original.state_dict(), Linear(6, 6, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
        ours = linear(x)
    weight, bias = (np.abs(parameter.detach().numpy()) for parameter in (original.weight, original.bias))
    expected = original(torch.tensor(x)).detach()
    assert_rounded(ours, expected, 2 * 7, np.abs(x) @ weight.T + bias, np.float64)


def test_sequential_names_its_children_by_number():
    layers = Sequential([Linear(2, 3, rngs=nnx.Rngs(0)), Linear(3, 4, rngs=nnx.Rngs(0))])
    assert layers(jnp.ones((1, 2))).shape == (1, 4)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(layers))} == {0, 1}


def test_statistics_that_cannot_be_updated_are_a_sentence():
    norm = BatchNorm(3, rngs=nnx.Rngs(0), use_running_average=False)
    images = jnp.arange(24, dtype=jnp.float32).reshape(2, 2, 2, 3)
    for compiled in (jax.jit(lambda x: norm(x)), nnx.jit(lambda x: norm(x))):
        with pytest.raises(
            UserError, match=r"in train mode in a compiled function that captures it, .* model.eval\(\)"
        ):
            compiled(images)
    assert nnx.jit(lambda norm, x: norm(x))(norm, images).shape == images.shape
    assert int(norm.num_batches_tracked[...]) == 1
