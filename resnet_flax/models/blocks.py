"""The residual blocks, under torchvision's attribute names."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from resnet_flax.layers import conv_norm, residual_relu
from resnet_flax.models.shortcuts import Layer, Shortcut, projection

Activation = Callable[[jax.Array], jax.Array]


class Block(nnx.Module):
    """A branch of convolutions, added to the input or to a shortcut of it.

    A subclass builds its branch in `build_branch`, runs it in `branch`, and names its `last_norm`. Everything else that
    blocks have in common is here: the shortcut, stochastic depth, and the sum.

    Args:
        in_features: channels of the input.
        planes: the stage's width; the output has `planes * expansion` channels.
        stride, dilation, groups, width_per_group: of the branch's 3x3 convolutions.
        drop_rate: in train mode, the probability that a sample's branch is dropped; what is kept is divided by 1 -
            drop_rate (arXiv:1603.09382). None for no stochastic depth.
        zero_init: start the last norm's scale at 0, so that the block begins as its shortcut (arXiv:1706.02677).
        conv, norm: build the layers, called as `resnet_flax.layers.Conv` and `BatchNorm` are but without dtypes or
            random numbers.
        shortcut: builds the shortcut of a block that changes the shape; any other block's shortcut is its input.
        activation: after each norm but the last, and after the sum.
        rngs: random numbers for stochastic depth; not needed without.
    """

    expansion: ClassVar[int] = 1
    shortcut_name: ClassVar[str] = "downsample"
    """The attribute that holds the shortcut, None where the shape stays."""
    drop: nnx.Dropout | None = None
    activation: Activation = staticmethod(nnx.relu)

    def __init__(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        drop_rate: float | None = None,
        zero_init: bool = False,
        conv: Layer,
        norm: Layer,
        shortcut: Shortcut = projection,
        activation: Activation = nnx.relu,
        rngs: nnx.Rngs | None = None,
    ):
        out_features = planes * self.expansion
        self.build_branch(
            in_features,
            planes,
            stride=stride,
            dilation=dilation,
            groups=groups,
            width_per_group=width_per_group,
            conv=conv,
            norm=norm,
        )
        changes_shape = stride != 1 or in_features != out_features
        module = shortcut(in_features, out_features, stride=stride, conv=conv, norm=norm) if changes_shape else None
        setattr(self, self.shortcut_name, module)
        if drop_rate is not None:
            self.drop = nnx.Dropout(drop_rate, broadcast_dims=(1, 2, 3), rngs=rngs)
        if zero_init:
            scale = self.last_norm.scale
            scale[...] = jnp.zeros_like(scale[...])
        if activation is not nnx.relu:  # which as an attribute would not survive `copy.deepcopy` as the same object
            self.activation = activation

    def build_branch(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        width_per_group: int,
        conv: Layer,
        norm: Layer,
    ) -> None:
        raise NotImplementedError

    def branch(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @property
    def last_norm(self) -> Any:
        """The branch's last norm."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output (N, h, w, planes * expansion) for x (N, H, W, in_features)."""
        module = getattr(self, self.shortcut_name)
        shortcut = x if module is None else module(x)
        branch = self.branch(x)
        if self.drop is not None:
            branch = self.drop(branch)
        total = branch + shortcut
        return residual_relu(total) if self.activation is nnx.relu else self.activation(total)


class BasicBlock(Block):
    """Two 3x3 convolutions: He et al. 2015 (arXiv:1512.03385), figure 5 left."""

    def build_branch(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        width_per_group: int,
        conv: Layer,
        norm: Layer,
    ) -> None:
        if groups != 1 or width_per_group != 64 or dilation != 1:
            raise ValueError(
                f"{type(self).__name__} takes groups=1, width_per_group=64 and dilation=1 only, not groups={groups}, "
                f"width_per_group={width_per_group} and dilation={dilation}; Bottleneck takes any"
            )
        self.conv1 = conv(in_features, planes, 3, stride=stride, padding=1)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, padding=1)
        self.bn2 = norm(planes)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.activation(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    @property
    def last_norm(self) -> Any:
        return self.bn2


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions: arXiv:1512.03385, figure 5 right.

    The stride is in the 3x3, as in torchvision ("ResNet v1.5"); the paper has it in the first 1x1. `groups` and
    `width_per_group` make it ResNeXt's (arXiv:1611.05431) or a wide one (arXiv:1605.07146).
    """

    expansion = 4

    def build_branch(
        self,
        in_features: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        width_per_group: int,
        conv: Layer,
        norm: Layer,
    ) -> None:
        width = int(planes * width_per_group / 64) * groups
        out_features = planes * self.expansion
        self.conv1 = conv(in_features, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_features, 1)
        self.bn3 = norm(out_features)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.activation(self.bn2(self.conv2(x)))
        return conv_norm(self.conv3, self.bn3, x)

    @property
    def last_norm(self) -> Any:
        return self.bn3
