"""Layers with PyTorch's semantics, as NNX modules over NHWC images."""

from resnet_flax.layers import initializers
from resnet_flax.layers.activation import relu_before_product, residual_relu
from resnet_flax.layers.attention import EfficientChannelAttention, SqueezeExcite
from resnet_flax.layers.convolution import Conv
from resnet_flax.layers.linear import Linear
from resnet_flax.layers.normalization import BatchNorm, GroupNorm, conv_norm
from resnet_flax.layers.pooling import AveragePool, BlurPool, max_pool
from resnet_flax.layers.sequential import Apply, Sequential

__all__ = [
    "Apply",
    "AveragePool",
    "BatchNorm",
    "BlurPool",
    "Conv",
    "EfficientChannelAttention",
    "GroupNorm",
    "Linear",
    "Sequential",
    "SqueezeExcite",
    "conv_norm",
    "initializers",
    "max_pool",
    "relu_before_product",
    "residual_relu",
]
