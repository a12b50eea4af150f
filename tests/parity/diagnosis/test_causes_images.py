"""Faults planted in a small CNN and in a decoder, each caught and named."""

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from resnet_flax.layers import BatchNorm
from tests.parity.diagnosis.twins import Flax, Planted, Torch, assert_caught_and_named, conv, filled, rngs

SHAPE = (2, 7, 9, 3)


def cnn(ours, theirs, *, layer=None, their_layer=None, shape=SHAPE, features=4):
    """A convolution, functions or a layer, and a second convolution."""
    layers = {"a": conv(3, 4), "b": conv(features, 2, 1)}
    others = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(features, 2, 1)}
    if layer:
        layers["layer"], others["layer"] = layer, their_layer
    return filled(Flax(layers, ours), Torch(others, theirs), shape)


def between(ours, theirs, **options):
    return lambda: cnn(lambda s, x: s.b(ours(s.a(x))), lambda s, x: s.b(theirs(s.a(x))), **options)


def with_layer(make, make_theirs, features=4):
    return lambda: cnn(
        lambda s, x: s.b(s.layer(s.a(x))), lambda s, x: s.b(s.layer(s.a(x))), layer=make(), their_layer=make_theirs(),
        features=features,
    )  # fmt: skip


def padded_conv(mode):
    """A convolution with the padding done by hand."""

    class Padded(nnx.Conv):
        def __call__(self, x):
            return super().__call__(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode))

    return Padded(4, 4, (3, 3), padding="VALID", rngs=rngs())


def resized(method, size, antialias=False):
    return lambda x: jax.image.resize(x, (len(x), *size, x.shape[-1]), method, antialias=antialias)


def corners(x):
    """Bilinear with corners aligned, by a factor that is no integer."""
    height, width = x.shape[1] * 2, x.shape[2] * 2
    rows = jnp.linspace(0, x.shape[1] - 1, height)
    columns = jnp.linspace(0, x.shape[2] - 1, width)

    def mixed(x, at, axis):
        low = jnp.clip(jnp.floor(at).astype(int), 0, x.shape[axis] - 2)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, low + 1, axis) * share

    return mixed(mixed(x, rows, 1), columns, 2)


class Transposed(nnx.ConvTranspose):
    """Cuts the whole output by `cut` at its start, and mirrors its kernel if `flip`."""

    cut, flip = 1, False

    def __call__(self, x):
        kernel = self.kernel[...]
        if self.flip:
            kernel = jnp.flip(kernel, (0, 1))
        y = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", transpose_kernel=True,
                                   dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        size = 2 * x.shape[1], 2 * x.shape[2]
        y = jnp.pad(y, ((0, 0), (0, 1), (0, 1), (0, 0)))
        y = y[:, self.cut : self.cut + size[0], self.cut : self.cut + size[1]]
        return y + self.bias[...].reshape(1, 1, 1, -1)


def transposed(cut, flip=False):
    kind = type("Transposed", (Transposed,), {"cut": cut, "flip": flip})
    make = lambda: kind(4, 4, (3, 3), (2, 2), transpose_kernel=True, rngs=rngs())  # noqa: E731
    return with_layer(make, lambda: nn.ConvTranspose2d(4, 4, 3, 2, padding=1, output_padding=1))


class Frozen(nnx.BatchNorm):
    """Uses its running statistics in train mode."""

    def __call__(self, x, use_running_average=None):
        return super().__call__(x, use_running_average=True)


def group_norm(groups, epsilon=1e-5):
    return lambda: nnx.GroupNorm(4, num_groups=groups, epsilon=epsilon, rngs=rngs())


class Interleaved(nnx.GroupNorm):
    def __call__(self, x):
        y = x.reshape(*x.shape[:-1], -1, self.num_groups)
        axes = (1, 2, 3)
        y = (y - y.mean(axes, keepdims=True)) / jnp.sqrt(y.var(axes, keepdims=True) + self.epsilon)
        return y.reshape(x.shape) * self.scale[...].reshape(1, 1, 1, -1) + self.bias[...].reshape(1, 1, 1, -1)


def shuffled(x):
    """Twice the channels, then a pixel shuffle that takes them as (h, w, C)."""
    x = jnp.concatenate((x, 2 * x), -1)
    n, h, w, _ = x.shape
    return x.reshape(n, h, w, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, 2)


def sum_after(s, x):
    return s.b(nnx.relu(s.a(x)) + s.layer(s.a(x)))


def flattened():
    """A linear layer on the features of two pixels, flattened as they lie."""
    ours = {"a": conv(3, 4), "b": nnx.Linear(4 * 6, 2, rngs=rngs())}
    theirs = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Linear(4 * 6, 2)}
    return filled(
        Flax(ours, lambda s, x: s.b(s.a(x).reshape(len(x), -1))),
        Torch(theirs, lambda s, x: s.b(s.a(x).flatten(1))),
        (2, 2, 3, 3),
    )


def mean_of_all_batches():
    """A BatchNorm without a momentum."""
    return cnn(
        lambda s, x: s.b(s.layer(s.a(x))),
        lambda s, x: s.b(s.layer(s.a(x))),
        layer=BatchNorm(4, rngs=rngs()),
        their_layer=nn.BatchNorm2d(4, momentum=None),
    )


def two_faults():
    """Another epsilon, and behind it another activation."""
    return cnn(
        lambda s, x: s.b(nnx.relu(s.layer(s.a(x)))),
        lambda s, x: s.b(F.silu(s.layer(s.a(x)))),
        layer=group_norm(2, 1e-3)(),
        their_layer=nn.GroupNorm(2, 4),
    )


FAULTS = (
    Planted("count_include_pad", "the avg-pool has count_include_pad=False, PyTorch's True",
            between(lambda x: nnx.avg_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)], count_include_pad=False),
                   lambda x: F.avg_pool2d(x, 3, 2, 1))),
    Planted("ceil_mode", "the max-pool has ceil_mode=False, PyTorch's True",
            between(lambda x: nnx.max_pool(x, (2, 2), (2, 2)).mean((1, 2), keepdims=True),
                   lambda x: F.max_pool2d(x, 2, ceil_mode=True).mean((2, 3), keepdim=True))),
    Planted("padding of a pool", "the max-pool has padding SAME, PyTorch's 1",
            between(lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"),
                   lambda x: F.max_pool2d(x, 3, 2, 1), shape=(2, 6, 8, 3))),
    Planted("flattened with the channels last", "flattened with the 4 channels last, PyTorch's with them first",
            flattened),
    Planted("a momentum for None", "PyTorch's is None: it keeps the mean of all batches", mean_of_all_batches,
            {"checks": ("batch_stats",)}),
    Planted("max for average", "the pooling takes the max, PyTorch's the average",
            between(lambda x: nnx.max_pool(x, (2, 2), (2, 2)), lambda x: F.avg_pool2d(x, 2))),
    Planted("a max-pool before the average", "a max-pool of window 3 and stride 1 comes before the avg-pool",
            between(lambda x: nnx.avg_pool(nnx.max_pool(x, (3, 3), padding="SAME"), (2, 2), (2, 2)),
                   lambda x: F.avg_pool2d(x, 2))),
    Planted("a max-pool left out", "the max-pool is left out",
            between(lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
                   lambda x: F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 2))),
    Planted("a window of 3", "the avg-pool has a window of 3, PyTorch's 2",
            between(lambda x: nnx.avg_pool(x, (3, 3), (2, 2)).mean((1, 2), keepdims=True),
                   lambda x: F.avg_pool2d(x, 2).mean((2, 3), keepdim=True))),
    Planted("a global maximum", "the maximum is taken where PyTorch takes the mean",
            between(lambda x: x.max((1, 2), keepdims=True), lambda x: x.mean((2, 3), keepdim=True))),
    Planted("a global sum", "the sum is taken where PyTorch takes the mean",
            between(lambda x: x.sum((1, 2), keepdims=True), lambda x: F.adaptive_avg_pool2d(x, 1))),
    Planted("zeros for reflect", "in layer, the padding is by zeros, PyTorch's by reflect",
            with_layer(lambda: conv(4, 4), lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))),
    Planted("edge for zeros", "pads by edge (replicate), PyTorch with zeros",
            with_layer(lambda: padded_conv("edge"), lambda: nn.Conv2d(4, 4, 3, padding=1))),
    Planted("circular for reflect", "the padding is by circular, PyTorch's by reflect",
            with_layer(lambda: padded_conv("wrap"),
                       lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))),
    Planted("dilation 1 for 2", "dilation", with_layer(
        lambda: conv(4, 4, padding=1), lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2))),
    Planted("a GroupNorm of 4 groups", "the norm has 4 groups, PyTorch's 2",
            with_layer(group_norm(4), lambda: nn.GroupNorm(2, 4))),
    Planted("a GroupNorm's epsilon", "epsilon of layer is 1e-06, PyTorch's is 1e-05",
            with_layer(group_norm(2, 1e-6), lambda: nn.GroupNorm(2, 4))),
    Planted("a GroupNorm of every second channel", "the norm's 2 groups are made of every 2th channel",
            with_layer(lambda: Interleaved(4, num_groups=2, epsilon=1e-5, rngs=rngs()), lambda: nn.GroupNorm(2, 4))),
    Planted("a frozen BatchNorm", "train ran in eval mode: layer normalises with the running statistics",
            with_layer(lambda: Frozen(4, rngs=rngs()), lambda: nn.BatchNorm2d(4))),
    Planted("nearest at pixel centres", "nearest at pixel centres (jax.image.resize), PyTorch's is nearest, rounded",
            between(resized("nearest", (4, 6)), lambda x: F.interpolate(x, (4, 6)))),
    Planted("corners not aligned", "resizing is bilinear with align_corners=False, PyTorch's is bilinear with",
            between(resized("bilinear", (14, 18)),
                    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))),
    Planted("corners aligned", "resizing is bilinear with align_corners=True, PyTorch's is bilinear with",
            between(corners, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"))),
    Planted("antialiasing", "resizing is bilinear with antialiasing, PyTorch's is bilinear with align_corners=False",
            between(resized("bilinear", (4, 5), True), lambda x: F.interpolate(x, (4, 5), mode="bilinear"))),
    Planted("a transposed convolution cut otherwise", "the transposed convolution's whole output is cut by 0",
            transposed(0)),
    Planted("a transposed convolution mirrored", "it has its spatial axes reversed", transposed(1, True)),
    Planted("a pixel shuffle of channels last", "the pixel shuffle takes channels as (h, w, C)",
            between(shuffled, lambda x: F.pixel_shuffle(torch.cat((x, 2 * x), 1), 2), features=2)),
    Planted("two independent faults: the first", "epsilon of layer is 0.001, PyTorch's is 1e-05", two_faults),
    Planted("two independent faults: the second", "ReLU is applied where PyTorch applies SiLU",
            two_faults),
    Planted("ReLU before the residual sum", "relu is applied to the",
            lambda: cnn(sum_after, lambda s, x: s.b(torch.relu(s.a(x) + s.layer(s.a(x)))),
                        layer=conv(4, 4), their_layer=nn.Conv2d(4, 4, 3, padding=1))),
    Planted("only the border differs, by nobody's rule", None,
            between(lambda x: x.at[:, 0].mul(1.5), lambda x: x)),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    assert_caught_and_named(fault)
