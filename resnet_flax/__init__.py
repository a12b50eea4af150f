"""The ResNet family in JAX/Flax NNX with PyTorch weight parity."""

from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, Residual, ResNet
from resnet_flax.weights.load import Pretrained, create_model, load_pretrained

__all__ = [
    "ARCHITECTURES",
    "BasicBlock",
    "Bottleneck",
    "Pretrained",
    "ResNet",
    "Residual",
    "UserError",
    "create_model",
    "load_pretrained",
]
