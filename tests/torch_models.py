"""PyTorch networks to compare with, the Residual ones under their files' names."""

import numpy as np
import torch
import torchvision
from torch import nn

from resnet_flax.models.originals import ResidualNet, stage


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


def torch_model(name: str, **options) -> nn.Module:
    """The PyTorch original of an architecture, under this project's names."""
    if name.startswith("residual"):
        return ResidualNet(shortcut_kernel=3 if name == "residual18_3x3" else 1, **options)
    return torchvision.models.get_model(name, **options)


def nchw(images: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    """A copy of NHWC images as a torch tensor (N, C, H, W)."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=dtype)
