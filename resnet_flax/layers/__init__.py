"""Layers with PyTorch's semantics, as NNX modules over NHWC images."""

from resnet_flax.layers import initializers
from resnet_flax.layers.activation import residual_relu
from resnet_flax.layers.convolution import Conv
from resnet_flax.layers.linear import Linear
from resnet_flax.layers.normalization import BatchNorm, conv_norm
from resnet_flax.layers.pooling import max_pool
from resnet_flax.layers.sequential import Sequential

__all__ = ["BatchNorm", "Conv", "Linear", "Sequential", "conv_norm", "initializers", "max_pool", "residual_relu"]
