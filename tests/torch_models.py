"""PyTorch networks to compare with, the Residual ones under their files' names."""

import numpy as np
import torch
from torch import nn

from resnet_flax.models import get_architecture
from resnet_flax.models.originals import stage, torch_network


def residual_blocks() -> nn.Sequential:
    """The Residual network with the names its Adam run on Fashion-MNIST was saved under."""
    net = nn.Sequential(nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    for number, (before, channels) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
        net.add_module(f"resnet_block{number + 1}", stage(before, channels, 1))
    net.add_module("global_avg_pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("fc", nn.Sequential(nn.Flatten(), nn.Linear(512, 10)))
    return net


def residual_sequential(shortcut_kernel: int) -> nn.Sequential:
    """The Residual network as one Sequential of Sequentials, with a 1x1 or 3x3 shortcut."""
    stem = nn.Sequential(nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = [stage(*io, shortcut_kernel) for io in [(64, 64), (64, 128), (128, 256), (256, 512)]]
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def torch_model(name: str) -> nn.Module:
    """The PyTorch original of an architecture, under this project's names."""
    row = get_architecture(name)
    return torch_network(name, num_classes=row.num_classes, in_channels=row.in_channels)


def nchw(images: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    """A copy of NHWC images as a torch tensor (N, C, H, W)."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=dtype)
