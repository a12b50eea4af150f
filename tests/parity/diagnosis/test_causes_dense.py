"""Faults planted in an MLP and a recurrent cell, each caught and named."""

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.diagnosis.twins import Flax, Planted, Torch, assert_caught_and_named, filled, linear, rngs


def mlp(ours, theirs, *, norm=None, their_norm=None):
    """Two linear layers with functions between and, if given, a norm of 8 features."""
    layers = {"a": linear(6, 8), "b": linear(8, 4)}
    others = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
    if norm:
        layers["norm"], others["norm"] = norm(8, rngs=rngs()), their_norm(8)
    return filled(Flax(layers, ours), Torch(others, theirs), (5, 6))


def between(ours, theirs):
    """Another function between the two layers."""
    return lambda: mlp(lambda s, x: s.b(ours(s.a(x))), lambda s, x: s.b(theirs(s.a(x))))


def normed(norm, their_norm):
    return lambda: mlp(
        lambda s, x: s.b(s.norm(s.a(x))), lambda s, x: s.b(s.norm(s.a(x))), norm=norm, their_norm=their_norm
    )


class PlusOne(nnx.RMSNorm):
    def __call__(self, x):
        y = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon)
        return y * (1 + self.scale[None])


class Unbiased(nnx.LayerNorm):
    def __call__(self, x):
        y = x - x.mean(-1, keepdims=True)
        return y / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + self.epsilon) * self.scale[None] + self.bias[None]


class NoScale(nnx.LayerNorm):
    def __call__(self, x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + self.epsilon) + self.bias[None]


class NoMean(nnx.LayerNorm):
    def __call__(self, x):
        y = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon)
        return y * self.scale[None] + self.bias[None]


def flax_norm(kind, epsilon):
    return lambda features, rngs: kind(features, epsilon=epsilon, rngs=rngs)


def torch_norm(kind, epsilon):
    return lambda features: kind(features, eps=epsilon)


class Cell(Flax):
    """h' = tanh(i x + h h), over the second axis."""


def recurrent(ours, theirs):
    layers = {"ih": linear(3, 8), "hh": linear(4, 8)}
    others = {"ih": nn.Linear(3, 8), "hh": nn.Linear(4, 8)}

    def flax(s, x):
        h = jnp.zeros((len(x), 4))
        for t in range(x.shape[1]):
            h = ours(h, s.ih(x[:, t]) + s.hh(h))
        return h

    def torch_(s, x):
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = theirs(h, s.ih(x[:, t]) + s.hh(h))
        return h

    return lambda: filled(Flax(layers, flax), Torch(others, torch_), (2, 3, 3))


def gated(h, gates):
    z, n = gates.chunk(2, -1)
    return (1 - z.sigmoid()) * h + z.sigmoid() * n.tanh()


def gated_in_jax(h, gates):
    z, n = jnp.split(gates, 2, -1)
    return (1 - jax.nn.sigmoid(z)) * h + jax.nn.sigmoid(z) * jnp.tanh(n)


def swapped_gates(h, gates):
    return gated_in_jax(h, jnp.roll(gates, 4, -1))


def hard_gates(h, gates):
    z, n = jnp.split(gates, 2, -1)
    z = jnp.clip(0.2 * z + 0.5, 0, 1)
    return (1 - z) * h + z * jnp.tanh(n)


def without_tanh(h, gates):
    z, n = jnp.split(gates, 2, -1)
    return (1 - jax.nn.sigmoid(z)) * h + jax.nn.sigmoid(z) * n


def largest_of_two():
    """A table rounded to float32 and, later, another GELU."""
    table = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    rounded = jnp.asarray(table.float().numpy())
    return mlp(
        lambda s, x: s.b(nnx.gelu(s.norm(s.a(x) * rounded[None]))),
        lambda s, x: s.b(F.gelu(s.norm(s.a(x) * table))),
        norm=flax_norm(nnx.LayerNorm, 1e-5),
        their_norm=nn.LayerNorm,
    )


FAULTS = (
    Planted("GELU by tanh", "GELU by tanh is applied where PyTorch applies GELU by erf", between(nnx.gelu, F.gelu)),
    Planted("GELU by erf", "GELU by erf is applied where PyTorch applies GELU by tanh",
            between(lambda x: nnx.gelu(x, approximate=False), lambda x: F.gelu(x, approximate="tanh"))),
    Planted("ReLU for SiLU", "ReLU is applied where PyTorch applies SiLU", between(nnx.relu, F.silu)),
    Planted("an activation too few", "the SiLU of PyTorch is missing", between(lambda x: x, nn.functional.silu)),
    Planted("an activation too many", "tanh is applied where PyTorch applies nothing",
            between(jnp.tanh, lambda x: x)),
    Planted("a leaky slope of 0.2", "leaky ReLU with slope 0.2 is applied where PyTorch applies leaky ReLU with slope",
            between(lambda x: nnx.leaky_relu(x, 0.2), F.leaky_relu)),
    Planted("SiLU for hardswish", "SiLU is applied where PyTorch applies hardswish", between(nnx.silu, F.hardswish)),
    Planted("quick GELU", "quick GELU", between(lambda x: x * nnx.sigmoid(1.702 * x), F.gelu)),
    Planted("softplus of beta 1", "softplus has beta 1, PyTorch's is 2",
            between(nnx.softplus, lambda x: F.softplus(x, beta=2)), ),
    Planted("softmax over the batch", "the softmax is over axis 0, PyTorch's over axis 1",
            between(lambda x: nnx.softmax(x, 0), lambda x: x.softmax(-1))),
    Planted("the residual is missing", "operand of PyTorch's sum is left out",
            between(nnx.relu, lambda x: x + torch.relu(x))),
    Planted("LayerNorm epsilon", "epsilon of norm is 1e-06, PyTorch's is 1e-05",
            normed(flax_norm(nnx.LayerNorm, 1e-6), nn.LayerNorm)),
    Planted("RMSNorm epsilon", "epsilon of norm is 1e-06, PyTorch's is 1e-05",
            normed(flax_norm(nnx.RMSNorm, 1e-6), torch_norm(nn.RMSNorm, 1e-5))),
    Planted("RMSNorm of 1 + scale", "in norm, the norm multiplies by 1 + scale",
            normed(flax_norm(PlusOne, 1e-6), torch_norm(nn.RMSNorm, 1e-6))),
    Planted("LayerNorm's unbiased variance", "in norm, the norm divides by the unbiased variance",
            normed(flax_norm(Unbiased, 1e-5), nn.LayerNorm)),
    Planted("LayerNorm without its scale", "in norm, the norm's scale is not applied",
            normed(flax_norm(NoScale, 1e-5), nn.LayerNorm)),
    Planted("LayerNorm without its mean", "in norm, the norm does not subtract the mean",
            normed(flax_norm(NoMean, 1e-5), nn.LayerNorm)),
    Planted("a ratio that is nobody's", None, between(lambda x: 1.234 * x, lambda x: x)),
    Planted("noise in one feature", None, between(lambda x: x.at[:, 3].add(x[:, 4] ** 2), lambda x: x)),
    Planted("the gates of a GRU swapped", "parts 0 and 1 of PyTorch's chunk are swapped",
            recurrent(swapped_gates, gated)),
    Planted("a GRU's hard sigmoid", "hard sigmoid, clip(0.2 x + 0.5), is applied where PyTorch applies sigmoid",
            recurrent(hard_gates, gated)),
    Planted("a GRU without tanh", "the tanh of PyTorch is missing", recurrent(without_tanh, gated)),
    Planted("the smaller of two faults comes first", "between norm and b, GELU by tanh", largest_of_two),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    assert_caught_and_named(fault)
