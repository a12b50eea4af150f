"""The shortcuts of blocks that change the shape: what brings the input to the shape of the branch's output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from resnet_flax.layers import Sequential, conv_norm

Layer = Callable[..., Any]
Shortcut = Callable[..., Any]
"""Called with (in_features, out_features, stride=, conv=, norm=); returns the module."""


class Projection(Sequential):
    """A 1x1 convolution and a norm: option B of He et al. 2015 (arXiv:1512.03385), section 3.3."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv_norm(*self, x)


def projection(in_features: int, out_features: int, *, stride: int, conv: Layer, norm: Layer) -> Projection:
    return Projection([conv(in_features, out_features, 1, stride=stride), norm(out_features)])


@dataclass(frozen=True)
class BareConvolution:
    """A convolution without a norm: Zhang et al., "Dive into Deep Learning", section 8.6, with `kernel_size` 1."""

    kernel_size: int = 1

    def __call__(self, in_features: int, out_features: int, *, stride: int, conv: Layer, norm: Layer) -> Any:
        return conv(in_features, out_features, self.kernel_size, stride=stride, padding=self.kernel_size // 2)
