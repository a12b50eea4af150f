"""The stems: what takes images to the first stage's input."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import jax

from resnet_flax.errors import UserError
from resnet_flax.layers import Apply, AveragePool, BlurPool, Sequential, max_pool
from resnet_flax.models.shortcuts import Layer

StemType = Literal["", "deep", "deep_tiered", "small"]
AntiAliasing = Literal["", "avg", "blur"]


@dataclass(frozen=True)
class Stem:
    """Convolutions to `features` channels (the network's `conv1`; a norm and an activation follow), and their pooling.

    Attributes:
        kernel_size, stride: of the first convolution; each pads by half the kernel.
        has_pool: whether the resolution is halved a second time.
        features: channels of the output.
        hidden: channels of the convolutions before the last, each with a norm and an activation; all but the first
            have stride 1.
        aa_layer, replace_stem_pool, max_pool_ceil: of the pooling; see `ResNet`.
    """

    kernel_size: int
    stride: int
    has_pool: bool
    features: int = 64
    hidden: tuple[int, ...] = ()
    aa_layer: AntiAliasing = ""
    replace_stem_pool: bool = False
    max_pool_ceil: bool = False

    def convolutions(self, in_channels: int, conv: Layer, norm: Layer, activation: Any) -> Any:
        """The network's `conv1`: a convolution, or a `Sequential`."""
        widths = (in_channels, *self.hidden, self.features)
        layers: list[Any] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            if index:
                layers += [norm(before), Apply(activation)]
            stride = self.stride if index == 0 else 1
            layers.append(conv(before, after, self.kernel_size, stride=stride, padding=self.kernel_size // 2))
        return Sequential(layers) if self.hidden else layers[0]

    def pooling(self, conv: Layer, norm: Layer, activation: Any) -> Sequential | None:
        """The network's `maxpool` where it has parameters: ResNet-RS's (arXiv:2103.07579)."""
        if not (self.has_pool and self.replace_stem_pool):
            return None
        convolution = conv(self.features, self.features, 3, stride=1 if self.aa_layer else 2, padding=1)
        smaller = [Apply(anti_aliasing(self.aa_layer, 2))] if self.aa_layer else []
        return Sequential([convolution, *smaller, norm(self.features), Apply(activation)])

    def pool(self, x: jax.Array) -> jax.Array:
        """The pooling where it has no parameters."""
        if not self.has_pool:
            return x
        if self.aa_layer == "avg":
            return AveragePool(2, stride=2)(x)
        if self.aa_layer == "blur":
            return BlurPool(2)(max_pool(x, 3, stride=1, padding=1))
        return max_pool(x, 3, stride=2, padding=0 if self.max_pool_ceil else 1, ceil_mode=self.max_pool_ceil)


def anti_aliasing(aa_layer: AntiAliasing, stride: int) -> AveragePool | BlurPool:
    return AveragePool(stride, stride=stride) if aa_layer == "avg" else BlurPool(stride)


IMAGENET = Stem(kernel_size=7, stride=2, has_pool=True)
"""For images of about 224 pixels: He et al. 2015 (arXiv:1512.03385), table 1."""

SMALL_IMAGES = Stem(kernel_size=3, stride=1, has_pool=False)
"""For images of about 32 pixels: arXiv:1512.03385, section 4.2."""


def stem_of(stem_type: StemType, width: int, features: int, **pooling: Any) -> Stem:
    """The stem of that type.

    Args:
        stem_type: "" for `IMAGENET`, "small" for `SMALL_IMAGES`; "deep" and "deep_tiered" have three 3x3 convolutions
            (arXiv:1812.01187, figure 2b; the tiered one is timm's).
        width: of a deep stem, whose output has twice as many channels.
        features: channels of the output of the others.
        pooling: the pooling's attributes of `Stem`.

    Raises:
        UserError: for another type.
    """
    if stem_type in ("deep", "deep_tiered"):
        first = width if stem_type == "deep" else 3 * (width // 4)
        return Stem(3, stride=2, has_pool=True, features=2 * width, hidden=(first, width), **pooling)
    plain = {"": IMAGENET, "small": SMALL_IMAGES}
    if stem_type not in plain:
        raise UserError(f"stem_type must be '', 'deep', 'deep_tiered' or 'small', not {stem_type!r}")
    return replace(plain[stem_type], features=features, **pooling)
