"""The networks: blocks, the ResNet that stacks them, and the table of architectures."""

from resnet_flax.models.blocks import BasicBlock, Block, Bottleneck
from resnet_flax.models.registry import ARCHITECTURES, Architecture, build_model, get_architecture, list_models
from resnet_flax.models.residual import Residual
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.summary import Summary, summary

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BasicBlock",
    "Block",
    "Bottleneck",
    "ResNet",
    "Residual",
    "Summary",
    "build_model",
    "get_architecture",
    "list_models",
    "summary",
]
