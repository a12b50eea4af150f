"""The ResNet family: residual blocks and the network that stacks them, under torchvision's attribute names."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resnet_flax.layers import BatchNorm, Conv, Linear, Sequential, max_pool
from resnet_flax.models.blocks import Layer


class ResNet(nnx.Module):
    """A stem, four stages of residual blocks, a global average pool and a linear head.

    Args:
        block: `BasicBlock`, `Bottleneck`, or a class that is built and called like them.
        layers: blocks in each of the four stages.
        num_classes: outputs of the head; 0 for no head, which returns the pooled features.
        in_channels: of the images.
        groups, width_per_group: of the blocks' 3x3 convolutions.
        zero_init_residual: start each block's last norm at scale 0, so that it begins as the identity
            (arXiv:1706.02677).
        replace_stride_with_dilation: for stages 2, 3 and 4, dilate instead of striding.
        stochastic_depth: in train mode, the chance to leave a sample's last residual branch out; it rises linearly
            from 0 for the first block's (arXiv:1603.09382). What is kept is scaled up, as in torchvision.
        small_images: a 3x3 stem with stride 1 and no max-pool, for images of about 32 pixels, instead of the 7x7 with
            stride 2 and max-pool.
        conv_layer, norm_layer, linear_layer: the layers to build from; called with the arguments of
            `resnet_flax.layers.Conv`, `BatchNorm` and `Linear`.
        dtype: of the computation (`jax.numpy.bfloat16` for mixed precision); None takes the input's.
        param_dtype: of the parameters.

    A new network is in train mode, as every NNX module is; `resnet_flax.create_model` returns one in eval mode.
    """

    layer1: Sequential
    layer2: Sequential
    layer3: Sequential
    layer4: Sequential

    def __init__(
        self,
        block: type[Any],
        layers: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        width_per_group: int = 64,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
        stochastic_depth: float = 0.0,
        small_images: bool = False,
        conv_layer: Layer = Conv,
        norm_layer: Layer = BatchNorm,
        linear_layer: Layer = Linear,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv = partial(conv_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        norm = partial(norm_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.small_images = small_images
        stem = {"kernel_size": 3, "padding": 1} if small_images else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = conv(in_channels, 64, **stem)
        self.bn1 = norm(64)

        features, dilation = 64, 1
        for number, (depth, dilate) in enumerate(zip(layers, (False, *replace_stride_with_dilation), strict=True)):
            planes, stride = 64 * 2**number, 1 if number == 0 else 2
            first_dilation = dilation
            if dilate:
                dilation, stride = dilation * stride, 1
            blocks = []
            for index in range(depth):
                blocks.append(
                    block(
                        features,
                        planes,
                        stride=stride if index == 0 else 1,
                        dilation=first_dilation if index == 0 else dilation,
                        groups=groups,
                        width_per_group=width_per_group,
                        conv=conv,
                        norm=norm,
                    )
                )
                features = planes * blocks[-1].expansion
                if stochastic_depth:
                    rate = stochastic_depth * (sum(layers[:number]) + index) / (sum(layers) - 1)
                    blocks[-1].drop = nnx.Dropout(rate, broadcast_dims=(1, 2, 3), rngs=rngs)
                if zero_init_residual:
                    scale = blocks[-1].last_norm.scale
                    scale[...] = jnp.zeros_like(scale[...])
            setattr(self, f"layer{number + 1}", Sequential(blocks))

        self.num_features = features
        self.num_classes = num_classes
        linear = partial(linear_layer, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc = linear(features, num_classes) if num_classes else None

    taps = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
    """The places whose activations `features` can return."""

    def _activations(self, x: jax.Array) -> Iterable[tuple[str, jax.Array]]:
        x = nnx.relu(self.bn1(self.conv1(x)))
        if not self.small_images:
            x = max_pool(x, 3, stride=2, padding=1)
        yield "stem", x
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
            yield stage, x
        yield "pool", x.mean((1, 2))

    def features(self, images: jax.Array, taps: Iterable[str] = ("pool",)) -> dict[str, jax.Array]:
        """Activations of images (N, H, W, C) at `taps`: (N, h, w, c) each, and (N, num_features) for "pool".

        Nothing behind the last tap is computed.

        Raises:
            ValueError: if a tap is not one of `ResNet.taps`.
        """
        wanted = set(taps)
        if unknown := wanted - set(self.taps):
            raise ValueError(f"no tap named {', '.join(sorted(unknown))}; the taps are {', '.join(self.taps)}")
        found = {}
        for name, x in self._activations(images):
            if name in wanted:
                found[name] = x
            if len(found) == len(wanted):
                break
        return found

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, num_classes) of normalised images (N, H, W, C); without a head, features (N, num_features)."""
        pooled = self.features(images)["pool"]
        return pooled if self.fc is None else self.fc(pooled)
