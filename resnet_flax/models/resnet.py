"""The ResNet family: a network that stacks residual blocks, under torchvision's attribute names."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resnet_flax.layers import BatchNorm, Conv, Linear, Sequential
from resnet_flax.models import stems
from resnet_flax.models.blocks import Activation, Block
from resnet_flax.models.shortcuts import Layer, Shortcut, projection
from resnet_flax.models.stems import Stem


class ResNet(nnx.Module):
    """A stem, four stages of residual blocks, a global average pool and a linear head.

    Args:
        block: `BasicBlock`, `Bottleneck`, or another subclass of `Block`.
        layers: blocks in each of the four stages.
        num_classes: outputs of the head; 0 for no head, so that the network returns the pooled features.
        in_channels: of the images.
        groups, width_per_group: of the blocks' 3x3 convolutions.
        zero_init_residual: start each block's last norm at scale 0, so that the block begins as its shortcut
            (arXiv:1706.02677).
        replace_stride_with_dilation: for stages 2, 3 and 4, dilate instead of striding.
        stochastic_depth: in train mode, the probability that a sample's last residual branch is dropped; it rises
            linearly from 0 for the first block's (arXiv:1603.09382). What is kept is scaled up, as in torchvision.
        stem: the layers before the first stage.
        small_images: use the stem for images of about 32 pixels (3x3, stride 1, no max-pool) instead of `stem`.
        shortcut: builds the shortcut of each block that changes the shape (`resnet_flax.models.shortcuts`).
        conv_bias: whether the convolutions have biases.
        conv_layer, norm_layer, linear_layer: the layers to build from; called with the arguments of
            `resnet_flax.layers.Conv`, `BatchNorm` and `Linear`.
        activation: the nonlinearity.
        dtype: of the computation (`jax.numpy.bfloat16` for mixed precision); None takes the input's.
        param_dtype: of the parameters.

    A new network is in train mode, as every NNX module is; `resnet_flax.create_model` returns one in eval mode.
    """

    layer1: Sequential
    layer2: Sequential
    layer3: Sequential
    layer4: Sequential
    activation: Activation = staticmethod(nnx.relu)

    def __init__(
        self,
        block: type[Block],
        layers: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        width_per_group: int = 64,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
        stochastic_depth: float = 0.0,
        stem: Stem = stems.IMAGENET,
        small_images: bool = False,
        shortcut: Shortcut = projection,
        conv_bias: bool = False,
        conv_layer: Layer = Conv,
        norm_layer: Layer = BatchNorm,
        linear_layer: Layer = Linear,
        activation: Activation = nnx.relu,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv = partial(conv_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if conv_bias:  # else as `conv_layer` has it
            conv = partial(conv, use_bias=True)
        norm = partial(norm_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        linear = partial(linear_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if activation is not nnx.relu:  # see `Block`
            self.activation = activation

        self.in_channels = in_channels
        self.stem = stems.SMALL_IMAGES if small_images else stem
        self.conv1 = self.stem.convolution(in_channels, conv)
        self.bn1 = norm(self.stem.features)

        features, dilation = self.stem.features, 1
        for number, (depth, dilate) in enumerate(zip(layers, (False, *replace_stride_with_dilation), strict=True)):
            planes, stride = 64 * 2**number, 1 if number == 0 else 2
            first_dilation = dilation
            if dilate:
                dilation, stride = dilation * stride, 1
            blocks = []
            for index in range(depth):
                depth_before = sum(layers[:number]) + index
                blocks.append(
                    block(
                        features,
                        planes,
                        stride=stride if index == 0 else 1,
                        dilation=first_dilation if index == 0 else dilation,
                        groups=groups,
                        width_per_group=width_per_group,
                        drop_rate=stochastic_depth * depth_before / (sum(layers) - 1) if stochastic_depth else None,
                        zero_init=zero_init_residual,
                        conv=conv,
                        norm=norm,
                        shortcut=shortcut,
                        activation=activation,
                        rngs=rngs,
                    )
                )
                features = planes * block.expansion
            setattr(self, f"layer{number + 1}", Sequential(blocks))

        self.num_features = features
        self.num_classes = num_classes
        self.fc = linear(features, num_classes) if num_classes else None

    taps = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
    """The places whose activations `features` can return."""

    @property
    def small_images(self) -> bool:
        """Whether the stem is the one for images of about 32 pixels."""
        return self.stem == stems.SMALL_IMAGES

    def _activations(self, x: jax.Array) -> Iterable[tuple[str, jax.Array]]:
        x = self.stem.pool(self.activation(self.bn1(self.conv1(x))))
        yield "stem", x
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
            yield stage, x
        yield "pool", x.mean((1, 2))

    def features(self, images: jax.Array, taps: Iterable[str] = ("pool",)) -> dict[str, jax.Array]:
        """Activations of images (N, H, W, C) at `taps`: (N, h, w, c) each, and (N, num_features) for "pool".

        Nothing after the last tap is computed.

        Raises:
            ValueError: if a tap is not one of `ResNet.taps`.
        """
        wanted = set(taps)
        if unknown := wanted - set(self.taps):
            raise ValueError(f"no tap named {', '.join(sorted(unknown))}; the taps are {', '.join(self.taps)}")
        activations = {}
        for name, x in self._activations(images):
            if name in wanted:
                activations[name] = x
            if len(activations) == len(wanted):
                break
        return activations

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes) of normalised images (N, H, W, C); without a head, features (N, num_features)."""
        pooled = self.features(images)["pool"]
        return pooled if self.fc is None else self.fc(pooled)
