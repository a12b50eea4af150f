"""The residual blocks, under torchvision's attribute names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.layers import Apply, conv_norm, relu_before_product, residual_relu
from resnet_flax.models.shortcuts import UNDILATED, Dilations, Layer, Shortcut, projection
from resnet_flax.models.stems import AntiAliasing, anti_aliasing

Activation = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Shape:
    """What a block's branch is built from.

    Attributes:
        in_features: channels of the input.
        planes: the stage's width; the output has `planes * expansion` channels.
        stride, groups, width_per_group: of the branch's 3x3 convolutions.
        dilations: of the stage's 3x3 convolutions: in this block the first one's, and any other's.
        reduce_first: by how much the first convolution's output is narrower (SENet-154: 2).
        stride_in_first_1x1: whether a bottleneck's stride is in its first convolution.
        aa_layer: the filter that takes over the stride, or "".
    """

    in_features: int
    planes: int
    stride: int = 1
    dilations: Dilations = UNDILATED
    groups: int = 1
    width_per_group: int = 64
    reduce_first: int = 1
    stride_in_first_1x1: bool = False
    aa_layer: AntiAliasing = ""

    @property
    def filter(self) -> Apply | None:
        """The anti-aliasing filter after the strided convolution, which then has stride 1."""
        if self.aa_layer and (self.stride == 2 or self.dilations.first != self.dilations.stage):
            return Apply(anti_aliasing(self.aa_layer, self.stride))
        return None


class Block(nnx.Module):
    """A branch of convolutions, added to the input or to a shortcut of it.

    A subclass builds its branch in `build_branch`, runs it in `branch`, and names its `last_norm`. Everything else that
    blocks have in common is here: channel attention, the shortcut, stochastic depth, and the sum.

    Args:
        shape: channels, strides and dilations.
        drop_rate: in train mode, the probability that a sample's branch is dropped; what is kept is divided by 1 -
            drop_rate (arXiv:1603.09382). None for no stochastic depth.
        zero_init: start the last norm's scale at 0, so that the block begins as its shortcut (arXiv:1706.02677).
        conv, norm: build the layers, called as `resnet_flax.layers.Conv` and `BatchNorm` are but without dtypes or
            random numbers.
        attention: builds the channel attention at the end of the branch, called with (features, conv=); None for none.
        shortcut: builds the shortcut of a block that changes the shape; any other block's shortcut is its input.
        activation: after each norm but the last, and after the sum.
        rngs: random numbers for stochastic depth; not needed without.
    """

    expansion: ClassVar[int] = 1
    shortcut_name: ClassVar[str] = "downsample"
    """The attribute that holds the shortcut, None where the shape stays."""
    aa: Apply | None = None
    se: nnx.Module | None = None
    drop: nnx.Dropout | None = None
    activation: Activation = staticmethod(nnx.relu)

    def __init__(
        self,
        shape: Shape,
        *,
        drop_rate: float | None = None,
        zero_init: bool = False,
        conv: Layer,
        norm: Layer,
        attention: Layer | None = None,
        shortcut: Shortcut = projection,
        activation: Activation = nnx.relu,
        rngs: nnx.Rngs | None = None,
    ):
        out_features = shape.planes * self.expansion
        self.build_branch(shape, conv=conv, norm=norm)
        if (aa := shape.filter) is not None:
            self.aa = aa
        if attention is not None:
            self.se = attention(out_features, conv=conv)
        module = None
        if shape.stride != 1 or shape.in_features != out_features:
            window = {"stride": shape.stride, "dilations": shape.dilations}
            module = shortcut(shape.in_features, out_features, **window, conv=conv, norm=norm)
        setattr(self, self.shortcut_name, module)
        if drop_rate is not None:
            self.drop = nnx.Dropout(drop_rate, broadcast_dims=(1, 2, 3), rngs=rngs)
        if zero_init:
            scale = self.last_norm.scale
            scale[...] = jnp.zeros_like(scale[...])
        if activation is not nnx.relu:  # which as an attribute would not survive `copy.deepcopy` as the same object
            self.activation = activation

    def build_branch(self, shape: Shape, *, conv: Layer, norm: Layer) -> None:
        raise NotImplementedError

    def branch(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @property
    def last_norm(self) -> Any:
        """The branch's last norm."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output (N, h, w, planes * expansion) for x (N, H, W, in_features).

        Raises:
            ValueError: if an average pool's rounding makes the branch and the shortcut differ in size.
        """
        module = getattr(self, self.shortcut_name)
        shortcut = x if module is None else module(x)
        branch = self.branch(x)
        if self.se is not None:
            branch = self.se(branch)
        if self.drop is not None:
            branch = self.drop(branch)
        if branch.shape != shortcut.shape:
            raise ValueError(
                f"for an input of {x.shape[1]}x{x.shape[2]} a block's branch gives {branch.shape[1]}x{branch.shape[2]} "
                f"and its shortcut {shortcut.shape[1]}x{shortcut.shape[2]}; use images whose sides are multiples of 32"
            )
        total = branch + shortcut
        return residual_relu(total) if self.activation is nnx.relu else self.activation(total)


class BasicBlock(Block):
    """Two 3x3 convolutions: He et al. 2015 (arXiv:1512.03385), figure 5 left.

    (N, H, W, C) -> (N, H / stride, W / stride, planes).

    Examples:
        >>> from flax import nnx
        >>> from resnet_flax import BasicBlock, ResNet
        >>> model = ResNet(BasicBlock, (1, 1), channels=(8, 16), num_classes=10, rngs=nnx.Rngs(0))
        >>> model.layer2[0].conv1.kernel.shape
        (3, 3, 8, 16)
    """

    def build_branch(self, shape: Shape, *, conv: Layer, norm: Layer) -> None:
        if shape.groups != 1 or shape.width_per_group != 64 or shape.stride_in_first_1x1:
            first = " and stride_in_first_1x1" if shape.stride_in_first_1x1 else ""
            raise UserError(
                f"{type(self).__name__} takes groups=1 and width_per_group=64 only and has no 1x1 convolution, not "
                f"groups={shape.groups} and width_per_group={shape.width_per_group}{first}; Bottleneck takes any"
            )
        stride = shape.stride if shape.filter is None else 1
        first, later = shape.dilations
        width = shape.planes // shape.reduce_first
        self.conv1 = conv(shape.in_features, width, 3, stride=stride, padding=first, dilation=first)
        self.bn1 = norm(width)
        self.conv2 = conv(width, shape.planes, 3, padding=later, dilation=later)
        self.bn2 = norm(shape.planes)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.activation(self.bn1(self.conv1(x)))
        if self.aa is not None:
            x = self.aa(x)
        return self.bn2(self.conv2(x))

    @property
    def last_norm(self) -> Any:
        return self.bn2


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions: arXiv:1512.03385, figure 5 right.

    (N, H, W, C) -> (N, H / stride, W / stride, 4 * planes).

    The stride is in the 3x3, as in torchvision ("ResNet v1.5"); the paper and Caffe have it in the first 1x1. `groups`
    and `width_per_group` make it ResNeXt's (arXiv:1611.05431) or a wide one (arXiv:1605.07146).

    Examples:
        >>> from flax import nnx
        >>> from resnet_flax import Bottleneck, ResNet
        >>> model = ResNet(Bottleneck, (1, 1), channels=(8, 16), num_classes=10, rngs=nnx.Rngs(0))
        >>> model.fc.kernel.shape
        (64, 10)
    """

    expansion = 4

    def build_branch(self, shape: Shape, *, conv: Layer, norm: Layer) -> None:
        width = int(shape.planes * shape.width_per_group / 64) * shape.groups
        reduced, out_features = width // shape.reduce_first, shape.planes * self.expansion
        first, second = (shape.stride, 1) if shape.stride_in_first_1x1 else (1, shape.stride)
        if shape.filter is not None:
            if shape.stride_in_first_1x1:
                raise UserError("an aa_layer takes over the stride of the 3x3; it needs stride_in_first_1x1=False")
            second = 1
        dilation = shape.dilations.first
        self.conv1 = conv(shape.in_features, reduced, 1, stride=first)
        self.bn1 = norm(reduced)
        self.conv2 = conv(reduced, width, 3, stride=second, padding=dilation, dilation=dilation, groups=shape.groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_features, 1)
        self.bn3 = norm(out_features)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = relu_before_product(x) if self.activation is nnx.relu else self.activation(x)
        if self.aa is not None:
            x = self.aa(x)
        return conv_norm(self.conv3, self.bn3, x)

    @property
    def last_norm(self) -> Any:
        return self.bn3
