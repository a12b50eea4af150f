"""Faults planted in an attention block with embeddings, each caught and named."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.diagnosis.twins import Flax, Planted, Torch, assert_caught_and_named, filled, linear, rngs

LENGTH, WIDTH, HEADS = 5, 8, 2
SCALE = 0.5  # 1 / sqrt(WIDTH / HEADS)


class TorchAttention(nn.Module):
    """Self-attention of two heads; `attend` takes (N, heads, L, width of a head) queries, keys and values."""

    def __init__(self, attend, turned=None):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attend, self.turned = attend, turned

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        if self.turned:
            q, k = self.turned(q), self.turned(k)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class FlaxAttention(nnx.Module):
    def __init__(self, attend, turned=None, split=None, order=(0, 1, 2)):
        self.qkv, self.proj = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.attend, self.turned, self.split, self.order = attend, turned, split, order

    def __call__(self, x):
        parts = jnp.split(self.qkv(x), 3, -1)
        q, k, v = (self._heads(parts[place]) for place in self.order)
        if self.turned:
            q, k = self.turned(q), self.turned(k)
        return self.proj(self.attend(q, k, v).swapaxes(1, 2).reshape(x.shape))

    def _heads(self, x):
        if self.split:
            return self.split(x)
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def flax_attend(scale=SCALE, axis=-1, mask=None, dtype=None):
    def attend(q, k, v):
        scores = q @ k.swapaxes(-1, -2) * scale
        if mask is not None:
            scores = jnp.where(mask, scores, -1e9)
        scores = scores if dtype is None else scores.astype(dtype)
        return jax.nn.softmax(scores, axis) @ v

    return attend


def torch_attend(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def fused(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def attention(attend=None, their_attend=torch_attend, turned=None, **options):
    mine, others = turned or (None, None)
    ours = FlaxAttention(attend or flax_attend(), mine, **options)
    return lambda: filled(
        Flax({"attn": ours}, lambda s, x: s.attn(x)),
        Torch({"attn": TorchAttention(their_attend, others)}, lambda s, x: s.attn(x)),
        (2, LENGTH, WIDTH),
    )


# Neither this mask nor its inverse leaves a row empty.
banded = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))) <= 1


def _angles(xp, width):
    return xp.arange(LENGTH)[:, None] / 100.0 ** (xp.arange(width // 2) * 2.0 / width)[None]


def rotary(x):
    """PyTorch's: of the two halves."""
    angles = torch.arange(LENGTH, dtype=x.dtype)[:, None] / 100.0 ** (
        torch.arange(x.shape[-1] // 2, dtype=x.dtype) * 2 / x.shape[-1]
    )
    angles = torch.cat((angles, angles), -1)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def interleaved(x):
    angles = jnp.repeat(_angles(jnp, x.shape[-1]), 2, -1)[None, None]
    turned = jnp.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
    return x * jnp.cos(angles) + turned * jnp.sin(angles)


def narrow_rotary(x):
    angles = _angles(jnp, x.shape[-1]).astype(jnp.bfloat16).astype(jnp.float64)
    angles = jnp.concatenate((angles, angles), -1)[None, None]
    first, second = jnp.split(x, 2, -1)
    return x * jnp.cos(angles) + jnp.concatenate((-second, first), -1) * jnp.sin(angles)


def tokens(ours, theirs, *, padding=None):
    """A table of tokens, one of positions, and a head."""
    flax = {"embed": nnx.Embed(11, WIDTH, rngs=rngs()), "head": linear(WIDTH, 3)}
    torch_ = {"embed": nn.Embedding(11, WIDTH, padding_idx=padding), "head": nn.Linear(WIDTH, 3)}
    return lambda: filled(Flax(flax, ours), Torch(torch_, theirs), (2, LENGTH), tokens=11)


class Positions(nnx.Module):
    """Adds a table (width, width) to an input of that shape."""

    def __init__(self, change):
        self.table, self.change = nnx.Param(jnp.zeros((WIDTH, WIDTH))), change

    def __call__(self, x):
        return x + self.change(self.table[...])[None]


class TorchPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, x):
        return x + self.table[: x.shape[1]]


def positions(change, length=WIDTH):
    layers = lambda: ({"pos": Positions(change)}, {"pos": TorchPositions()})  # noqa: E731

    def make():
        ours, theirs = layers()
        return filled(Flax(ours, lambda s, x: s.pos(x)), Torch(theirs, lambda s, x: s.pos(x)), (2, length, WIDTH))

    return make


def block(ours, theirs):
    """A norm, a linear layer and an input, put together in some order."""
    flax = {"norm": nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs()), "fc": linear(WIDTH, WIDTH)}
    torch_ = {"norm": nn.LayerNorm(WIDTH), "fc": nn.Linear(WIDTH, WIDTH)}
    return lambda: filled(Flax(flax, ours), Torch(torch_, theirs), (2, LENGTH, WIDTH))


FAULTS = (
    Planted("the scale is missing", "between attn.qkv and attn.proj, PyTorch's scale of 0.5 is not applied",
            attention(flax_attend(scale=1.0))),
    Planted("the scale is that of all heads", "1 / sqrt(width of all heads)",
            attention(flax_attend(scale=1 / math.sqrt(WIDTH)), fused())),
    Planted("a softmax over the queries", "the softmax is over axis 2, PyTorch's over axis 3",
            attention(flax_attend(axis=-2))),
    Planted("not causal", "the attention is not causal, PyTorch's is", attention(None, fused(is_causal=True))),
    Planted("a mask turned round", "the attention's mask is inverted",
            attention(flax_attend(mask=~banded), fused(attn_mask=torch.from_numpy(banded)))),
    Planted("one position ahead", "the attention sees one position ahead",
            attention(flax_attend(mask=np.tril(np.ones((LENGTH, LENGTH), bool), 1)), fused(is_causal=True))),
    Planted("keys and values swapped", "parts 1 and 2 of PyTorch's chunk are swapped", attention(order=(0, 2, 1))),
    Planted("heads split the other way", None,
            attention(split=lambda x: x.reshape(*x.shape[:2], -1, HEADS).transpose(0, 3, 1, 2))),
    Planted("a softmax in float32", "values are converted to float32 on the way",
            attention(flax_attend(dtype=jnp.float32))),
    Planted("a softmax in bfloat16", "values are converted to bfloat16 on the way",
            attention(flax_attend(dtype=jnp.bfloat16))),
    Planted("an interleaved rotary embedding", "the rotary embedding turns neighbouring pairs",
            attention(turned=(interleaved, rotary))),
    Planted("a rotary embedding in bfloat16", "values are converted to bfloat16",
            attention(turned=(narrow_rotary, rotary))),
    Planted("tokens counted from one more", "every value is PyTorch's plus 1", tokens(
        lambda s, x: s.head(s.embed(x + 1)), lambda s, x: s.head(s.embed(x)))),
    Planted("an embedding scaled by its width", "between embed and head", tokens(
        lambda s, x: s.head(s.embed(x) * math.sqrt(WIDTH)), lambda s, x: s.head(s.embed(x)))),
    Planted("positions transposed", "what is added has its axes 0 and 1 swapped", positions(lambda table: table.T)),
    Planted("positions from the second row on", "axis 0 is taken from 1 on, PyTorch's from 0",
            positions(lambda table: table[1 : LENGTH + 1], LENGTH)),
    Planted("a norm before the layer", "norm comes before fc, in PyTorch after it", block(
        lambda s, x: x + s.fc(s.norm(x)), lambda s, x: s.norm(x + s.fc(x)))),
    Planted("the mean over the wrong axis", None, tokens(
        lambda s, x: s.head(s.embed(x).mean(-1, keepdims=True).repeat(WIDTH, -1)),
        lambda s, x: s.head(s.embed(x).mean(1, keepdim=True).expand(-1, LENGTH, -1)))),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    assert_caught_and_named(fault)
