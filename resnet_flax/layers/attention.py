"""Channel attention: a gate between 0 and 1 for each channel, computed from the means of all channels."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

SE_DIVISOR = 8
"""The hidden channels of squeeze-and-excitation are a multiple of it, as in timm."""


class SqueezeExcite(nnx.Module):
    """Two 1x1 convolutions with biases, a ReLU between them and a sigmoid after them: arXiv:1709.01507.

    Args:
        features: channels.
        conv: builds the convolutions.
        rd_ratio: hidden channels per channel; rounded to a multiple of `SE_DIVISOR`, halves up.
    """

    def __init__(self, features: int, *, conv: Callable[..., Any], rd_ratio: float = 1 / 16):
        hidden = max(SE_DIVISOR, int(features * rd_ratio + SE_DIVISOR / 2) // SE_DIVISOR * SE_DIVISOR)
        self.fc1 = conv(features, hidden, 1, use_bias=True)
        self.fc2 = conv(hidden, features, 1, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        means = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(nnx.relu(self.fc1(means))))


class EfficientChannelAttention(nnx.Module):
    """A convolution along the channels, without bias, and a sigmoid: arXiv:1910.03151.

    Its kernel has the odd size nearest (log2(features) + 1) / 2, at least 3 (equation 12).

    Args:
        features: channels.
        conv: builds the convolution.
    """

    def __init__(self, features: int, *, conv: Callable[..., Any]):
        size = int((math.log2(features) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        self.conv = conv(1, 1, (size,), padding=size // 2, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = jax.nn.sigmoid(self.conv(x.mean((1, 2))[:, :, None]))
        return x * gates[:, None, None, :, 0]
