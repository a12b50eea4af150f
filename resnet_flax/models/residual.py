"""The "Residual" networks' blocks: convolutions with biases, and a shortcut convolution without a norm."""

from typing import Any

import jax
from flax import nnx

from resnet_flax.layers import residual_relu
from resnet_flax.models.blocks import Layer, kept


class Residual(nnx.Module):
    """Two 3x3 convolutions and a shortcut, which is a bare convolution where the block changes the shape.

    Zhang et al., "Dive into Deep Learning", section 8.6. `shortcut_kernel` is the shortcut convolution's size.
    """

    expansion = 1
    drop: nnx.Dropout | None = None
    shortcut_kernel = 1

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
            raise ValueError("Residual has neither groups, nor another width, nor dilation; Bottleneck has")
        self.conv1 = conv(in_features, planes, 3, stride=stride, padding=1)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, padding=1)
        self.bn2 = norm(planes)
        kernel = self.shortcut_kernel
        changes_shape = stride != 1 or in_features != planes
        self.conv3 = conv(in_features, planes, kernel, stride=stride, padding=kernel // 2) if changes_shape else None

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.conv3 is None else self.conv3(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return residual_relu(kept(x, self.drop) + shortcut)

    @property
    def last_norm(self) -> Any:
        return self.bn2


class Residual3x3(Residual):
    """`Residual` with a 3x3 shortcut convolution."""

    shortcut_kernel = 3
