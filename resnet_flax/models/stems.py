"""The stems: what takes images to the first stage's input."""

from dataclasses import dataclass
from typing import Any

import jax

from resnet_flax.layers import max_pool
from resnet_flax.models.shortcuts import Layer


@dataclass(frozen=True)
class Stem:
    """A convolution to `features` channels (the network's `conv1`; a norm and an activation follow), and its pooling.

    Attributes:
        kernel_size, stride: of the convolution, which pads by half the kernel.
        has_pool: whether a 3x3 max-pool with stride 2 follows.
        features: channels of the output.
    """

    kernel_size: int
    stride: int
    has_pool: bool
    features: int = 64

    def convolution(self, in_channels: int, conv: Layer) -> Any:
        return conv(in_channels, self.features, self.kernel_size, stride=self.stride, padding=self.kernel_size // 2)

    def pool(self, x: jax.Array) -> jax.Array:
        return max_pool(x, 3, stride=2, padding=1) if self.has_pool else x


IMAGENET = Stem(kernel_size=7, stride=2, has_pool=True)
"""For images of about 224 pixels: He et al. 2015 (arXiv:1512.03385), table 1."""

SMALL_IMAGES = Stem(kernel_size=3, stride=1, has_pool=False)
"""For images of about 32 pixels: arXiv:1512.03385, section 4.2."""
