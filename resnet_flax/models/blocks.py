"""The residual blocks, under torchvision's attribute names."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from resnet_flax.layers import Sequential, conv_norm, residual_relu

Layer = Callable[..., Any]


class Projection(Sequential):
    """The shortcut's 1x1 convolution and norm, wherever the block changes the shape."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv_norm(*self, x)


def _projection(in_features: int, features: int, stride: int, conv: Layer, norm: Layer) -> Projection | None:
    if stride == 1 and in_features == features:
        return None
    return Projection([conv(in_features, features, 1, stride=stride), norm(features)])


def kept(branch: jax.Array, drop: nnx.Dropout | None) -> jax.Array:
    """The branch, which stochastic depth leaves out for some samples."""
    return branch if drop is None else drop(branch)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut: He et al. 2015 (arXiv:1512.03385), figure 5 left."""

    expansion = 1
    drop: nnx.Dropout | None = None

    def __init__(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        conv: Layer,
        norm: Layer,
    ):
        if groups != 1 or width_per_group != 64 or dilation != 1:
            raise ValueError("BasicBlock has neither groups, nor another width, nor dilation; Bottleneck has")
        self.conv1 = conv(in_features, planes, 3, stride=stride, padding=1)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, padding=1)
        self.bn2 = norm(planes)
        self.downsample = _projection(in_features, planes, stride, conv, norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return residual_relu(kept(x, self.drop) + shortcut)

    @property
    def last_norm(self) -> Any:
        return self.bn2


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: arXiv:1512.03385, figure 5 right.

    The stride sits in the 3x3, as in torchvision ("ResNet v1.5"); the paper has it in the first 1x1. `groups` and
    `width_per_group` make it ResNeXt's (arXiv:1611.05431) or a wide one (arXiv:1605.07146).
    """

    expansion = 4
    drop: nnx.Dropout | None = None

    def __init__(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        conv: Layer,
        norm: Layer,
    ):
        width = int(planes * width_per_group / 64) * groups
        features = planes * self.expansion
        self.conv1 = conv(in_features, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, features, 1)
        self.bn3 = norm(features)
        self.downsample = _projection(in_features, features, stride, conv, norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = conv_norm(self.conv3, self.bn3, x)
        return residual_relu(kept(x, self.drop) + shortcut)

    @property
    def last_norm(self) -> Any:
        return self.bn3
