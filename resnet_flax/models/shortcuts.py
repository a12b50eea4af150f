"""The shortcuts of blocks that change the shape: what brings the input to the shape of the branch's output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from resnet_flax.layers import Apply, AveragePool, Sequential, conv_norm

Layer = Callable[..., Any]


class Dilations(NamedTuple):
    """Of a stage that dilates instead of striding: that of its first block's 3x3, and that of its others."""

    first: int
    stage: int


UNDILATED = Dilations(1, 1)


class Shortcut(Protocol):
    """Builds the module of a block's shortcut."""

    def __call__(
        self, in_features: int, out_features: int, *, stride: int, dilations: Dilations, conv: Layer, norm: Layer
    ) -> Any: ...


class ConvNorm(Sequential):
    """A convolution and a norm."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv_norm(*self, x)


@dataclass(frozen=True)
class Projection:
    """A convolution and a norm: option B of He et al. 2015 (arXiv:1512.03385), section 3.3.

    A `kernel_size` above 1 is used where the resolution or the dilation changes (SENet-154).
    """

    kernel_size: int = 1

    def __call__(
        self, in_features: int, out_features: int, *, stride: int, dilations: Dilations, conv: Layer, norm: Layer
    ) -> ConvNorm:
        size, dilation = self.kernel_size, dilations.first
        if size == 1 or (stride == 1 and dilations.stage == 1):
            return ConvNorm([conv(in_features, out_features, 1, stride=stride), norm(out_features)])
        padding = (stride - 1 + dilation * (size - 1)) // 2
        window = {"stride": stride, "padding": padding, "dilation": dilation}
        return ConvNorm([conv(in_features, out_features, size, **window), norm(out_features)])


projection = Projection()


def average_pooled(
    in_features: int, out_features: int, *, stride: int, dilations: Dilations, conv: Layer, norm: Layer
) -> Sequential:
    """A 2x2 average pool, a 1x1 convolution and a norm: ResNet-D of He et al. 2018 (arXiv:1812.01187), figure 2c."""
    pool = Apply(_unchanged)
    if dilations.stage > 1:
        pool = Apply(AveragePool(2, stride=1, keep_size=True))
    elif stride > 1:
        pool = Apply(AveragePool(2, stride=stride, ceil_mode=True))
    return Sequential([pool, conv(in_features, out_features, 1), norm(out_features)])


def _unchanged(x: jax.Array) -> jax.Array:
    return x


@dataclass(frozen=True)
class ZeroPadding:
    """The input's every `stride`-th pixel, with half of the new channels, all zero, on either side.

    Option A of arXiv:1512.03385, section 4.2, which has no parameters. The paper leaves open where the zeros go.
    """

    stride: int
    before: int
    after: int

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (self.before, self.after)))


def zero_padded(
    in_features: int, out_features: int, *, stride: int, dilations: Dilations, conv: Layer, norm: Layer
) -> Apply:
    new = out_features - in_features
    return Apply(ZeroPadding(stride, new // 2, new - new // 2))


@dataclass(frozen=True)
class BareConvolution:
    """A convolution without a norm: Zhang et al., "Dive into Deep Learning", section 8.6, with `kernel_size` 1."""

    kernel_size: int = 1

    def __call__(
        self, in_features: int, out_features: int, *, stride: int, dilations: Dilations, conv: Layer, norm: Layer
    ) -> Any:
        return conv(in_features, out_features, self.kernel_size, stride=stride, padding=self.kernel_size // 2)
