"""The ResNet family: a network that stacks residual blocks, under torchvision's attribute names."""

from collections.abc import Iterable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm, Conv, EfficientChannelAttention, Linear, Sequential, SqueezeExcite
from resnet_flax.models import stems
from resnet_flax.models.blocks import Activation, Block, Shape
from resnet_flax.models.images import require_images
from resnet_flax.models.shortcuts import Dilations, Layer, Projection, Shortcut, average_pooled

GlobalPool = Literal["avg", "max", "avgmax", "catavgmax"]


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, a global pool and a linear head.

    Calling it takes normalised floats (N, H, W, in_channels) and gives logits (N, num_classes).

    The options have torchvision's names, and timm's where torchvision has none.

    Args:
        block: `BasicBlock`, `Bottleneck`, or another subclass of `Block`; or one for each stage.
        layers: blocks in each stage; there may be any number of stages, usually four.
        num_classes: outputs of the head; 0 for no head, so that the network returns the pooled features.
        in_channels: of the images.
        channels: the blocks' `planes` in each stage.
        groups, width_per_group: of the blocks' 3x3 convolutions (timm: cardinality, base_width).
        block_reduce_first: by how much the blocks' first convolutions are narrower.
        zero_init_residual: start each block's last norm at scale 0, so that the block begins as its shortcut
            (arXiv:1706.02677).
        replace_stride_with_dilation: for the second and later stages, dilate instead of striding.
        output_stride: 8 or 16 dilates the stages that would stride further, for images at the usual stem.
        last_stride: of the last stage; 1 for twice the resolution, as in person re-identification (arXiv:1903.07071).
        stride_in_first_1x1: whether a bottleneck strides in its first 1x1 convolution, as the paper, Caffe and Keras
            have it, instead of in the 3x3.
        stochastic_depth: in train mode, the probability that a sample's last residual branch is dropped; it rises
            linearly from 0 for the first block's (arXiv:1603.09382). What is kept is scaled up, as in torchvision.
        stem_type: "" for a 7x7 convolution, "small" for a 3x3 with stride 1 and no pooling; "deep" and "deep_tiered"
            have three 3x3 convolutions (arXiv:1812.01187).
        stem_width: of a deep stem, which has 2 * stem_width channels in the end; the others have channels[0].
        replace_stem_pool: a strided 3x3 convolution, norm and activation for the stem's max-pool (arXiv:2103.07579).
        max_pool_ceil: no padding but ceil mode in the stem's max-pool, as in Caffe.
        small_images: the stem "small" instead of `stem_type`, for images of about 32 pixels.
        aa_layer: "avg" or "blur" stride by an average pool or a binomial filter after the convolution
            (arXiv:1904.11486).
        avg_down: shortcuts with an average pool before an unstrided 1x1 convolution (arXiv:1812.01187).
        down_kernel_size: of the shortcuts' convolutions.
        shortcut: builds the shortcut of each block that changes the shape (`resnet_flax.models.shortcuts`); None for
            the one that `avg_down` and `down_kernel_size` describe.
        attn_layer: channel attention at the end of each branch: "se" (arXiv:1709.01507) or "eca" (arXiv:1910.03151).
        rd_ratio: hidden channels per channel of "se".
        global_pool: "avg", "max", their mean "avgmax", or both side by side "catavgmax".
        conv_bias: whether the convolutions have biases.
        norm_epsilon: added to the variance in the norms; None for the norm's own, 1e-5.
        conv_layer, norm_layer, linear_layer: the layers to build from; called with the arguments of
            `resnet_flax.layers.Conv`, `BatchNorm` and `Linear`.
        activation: the nonlinearity.
        dtype: of the computation (`jax.numpy.bfloat16` for mixed precision); None takes the input's.
        param_dtype: of the parameters.

    Raises:
        UserError: for options that exclude each other, or a block without what they concern.

    A new network is in train mode, as every NNX module is; `resnet_flax.create_model` returns one in eval mode.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from resnet_flax import BasicBlock, ResNet
        >>> model = ResNet(BasicBlock, (1, 1), channels=(8, 16), num_classes=10, small_images=True, rngs=nnx.Rngs(0))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape
        (2, 10)
        >>> model.features(np.zeros((2, 16, 16, 3), np.float32), taps=("layer2",))["layer2"].shape
        (2, 8, 8, 16)
    """

    layer1: Sequential
    layer2: Sequential
    layer3: Sequential
    layer4: Sequential
    maxpool: Sequential | None = None
    activation: Activation = staticmethod(nnx.relu)

    def __init__(
        self,
        block: type[Block] | tuple[type[Block], ...],
        layers: tuple[int, ...],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        groups: int = 1,
        width_per_group: int = 64,
        block_reduce_first: int = 1,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: tuple[bool, ...] = (),
        output_stride: int = 32,
        last_stride: int = 2,
        stride_in_first_1x1: bool = False,
        stochastic_depth: float = 0.0,
        stem_type: stems.StemType = "",
        stem_width: int = 64,
        replace_stem_pool: bool = False,
        max_pool_ceil: bool = False,
        small_images: bool = False,
        aa_layer: stems.AntiAliasing = "",
        avg_down: bool = False,
        down_kernel_size: int = 1,
        shortcut: Shortcut | None = None,
        attn_layer: Literal["", "se", "eca"] = "",
        rd_ratio: float = 1 / 16,
        global_pool: GlobalPool = "avg",
        conv_bias: bool = False,
        norm_epsilon: float | None = None,
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
        if norm_epsilon is not None:
            norm = partial(norm, epsilon=norm_epsilon)
        linear = partial(linear_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        attentions = {"": None, "se": partial(SqueezeExcite, rd_ratio=rd_ratio), "eca": EfficientChannelAttention}
        for option, value, known in (
            ("aa_layer", aa_layer, ("", "avg", "blur")),
            ("attn_layer", attn_layer, tuple(attentions)),
            ("global_pool", global_pool, ("avg", "max", "avgmax", "catavgmax")),
            ("output_stride", output_stride, (8, 16, 32)),
        ):
            if value not in known:
                raise UserError(f"{option} must be one of {known}, not {value!r}")
        if output_stride < 32 and last_stride == 1:
            raise UserError(f"the last stage is dilated with output_stride={output_stride}; it has no stride to be 1")
        if shortcut is None:
            shortcut = average_pooled if avg_down else Projection(down_kernel_size)
        if activation is not nnx.relu:  # see `Block`
            self.activation = activation

        self.in_channels = in_channels
        self.stem = stems.stem_of(
            "small" if small_images else stem_type,
            stem_width,
            features=2 * stem_width if "deep" in stem_type else channels[0],
            aa_layer=aa_layer,
            replace_stem_pool=replace_stem_pool,
            max_pool_ceil=max_pool_ceil,
        )
        self.conv1 = self.stem.convolutions(in_channels, conv, norm, activation)
        self.bn1 = norm(self.stem.features)
        if (pooling := self.stem.pooling(conv, norm, activation)) is not None:
            self.maxpool = pooling

        blocks = block if isinstance(block, tuple) else (block,) * len(layers)
        self.last_stride, self.stride_in_first_1x1 = last_stride, stride_in_first_1x1
        self.global_pool = global_pool
        asked = (False, *replace_stride_with_dilation, *(False,) * len(layers))
        dilate = tuple(asked[number] or 4 * 2**number > output_stride for number in range(len(layers)))
        self.dilated = dilate[1:]  # of the second and later stages
        features, dilation = self.stem.features, 1
        for number, (kind, depth, planes) in enumerate(zip(blocks, layers, channels[: len(layers)], strict=True)):
            stride = 1 if number == 0 else last_stride if number == len(layers) - 1 else 2
            first_dilation = dilation
            if dilate[number]:
                dilation, stride = dilation * stride, 1
            stage = []
            for index in range(depth):
                depth_before = sum(layers[:number]) + index
                shape = Shape(
                    features,
                    planes,
                    stride=stride if index == 0 else 1,
                    dilations=Dilations(first_dilation if index == 0 else dilation, dilation),
                    groups=groups,
                    width_per_group=width_per_group,
                    reduce_first=block_reduce_first,
                    stride_in_first_1x1=stride_in_first_1x1,
                    aa_layer=aa_layer,
                )
                stage.append(
                    kind(
                        shape,
                        drop_rate=stochastic_depth * depth_before / (sum(layers) - 1) if stochastic_depth else None,
                        zero_init=zero_init_residual,
                        conv=conv,
                        norm=norm,
                        attention=attentions[attn_layer],
                        shortcut=shortcut,
                        activation=activation,
                        rngs=rngs,
                    )
                )
                features = planes * kind.expansion
            setattr(self, f"layer{number + 1}", Sequential(stage))

        self.stages = tuple(f"layer{number + 1}" for number in range(len(layers)))
        self.num_features = 2 * features if global_pool == "catavgmax" else features
        self.num_classes = num_classes
        self.fc = linear(self.num_features, num_classes) if num_classes else None

    @property
    def taps(self) -> tuple[str, ...]:
        """The places whose activations `features` can return: "stem", "layer1" and so on, "pool"."""
        return ("stem", *self.stages, "pool")

    @property
    def small_images(self) -> bool:
        """Whether the stem is the one for images of about 32 pixels."""
        return not self.stem.has_pool

    def _activations(self, images: ArrayLike) -> Iterable[tuple[str, jax.Array]]:
        x = _stem(self, require_images(images, self.in_channels))
        yield "stem", x
        for stage in self.stages:
            x = getattr(self, stage)(x)
            yield stage, x
        yield "pool", self._pool(x)

    def _pool(self, x: jax.Array) -> jax.Array:
        """The global pool of x (N, h, w, C): (N, num_features)."""
        if self.global_pool == "avg":
            return x.mean((1, 2))
        if self.global_pool == "max":
            return x.max((1, 2))
        mean, maximum = x.mean((1, 2)), x.max((1, 2))
        return 0.5 * (mean + maximum) if self.global_pool == "avgmax" else jnp.concatenate([mean, maximum], 1)

    def links(self) -> list[tuple[str, nnx.Module]]:
        """The stem and the blocks with their paths, that of the stem empty: each takes the output of the one before.

        They share the network's variables; the pool and the head are not among them.
        """
        blocks = [(f"{stage}.{n}", block) for stage in self.stages for n, block in enumerate(getattr(self, stage))]
        return [("", StemOf(self)), *blocks]

    def features(self, images: ArrayLike, taps: Iterable[str] = ("pool",)) -> dict[str, jax.Array]:
        """Activations of images (N, H, W, C) at `taps`: (N, h, w, c) each, and (N, num_features) for "pool".

        Nothing after the last tap is computed.

        Raises:
            UserError: unless the images are floats (N, H, W, C) of the network's number of channels.
            ValueError: if a tap is not one of `taps`.
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

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Logits (N, num_classes) of normalised images (N, H, W, C); without a head, features (N, num_features).

        Raises:
            UserError: as `features`.
        """
        pooled = self.features(images)["pool"]
        return pooled if self.fc is None else self.fc(pooled)


def _stem(network: "ResNet | StemOf", x: jax.Array) -> jax.Array:
    x = network.activation(network.bn1(network.conv1(x)))
    return network.stem.pool(x) if network.maxpool is None else network.maxpool(x)


class StemOf(nnx.Module):
    """The stem of a network by itself, with the names and variables that it has there."""

    maxpool: Sequential | None = None
    activation: Activation = staticmethod(nnx.relu)

    def __init__(self, network: ResNet):
        self.conv1, self.bn1, self.stem = network.conv1, network.bn1, network.stem
        if network.maxpool is not None:
            self.maxpool = network.maxpool
        if network.activation is not nnx.relu:
            self.activation = network.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """What the first stage takes, of images (N, H, W, C)."""
        return _stem(self, x)
