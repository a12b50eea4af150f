"""Layers with PyTorch's semantics, as NNX modules over NHWC images."""

from resnet_flax.layers import initializers
from resnet_flax.layers.convolution import Conv
from resnet_flax.layers.linear import Linear
from resnet_flax.layers.normalization import BatchNorm
from resnet_flax.layers.pooling import max_pool
from resnet_flax.layers.sequential import Sequential

__all__ = ["BatchNorm", "Conv", "Linear", "Sequential", "initializers", "max_pool"]
