"""The PyTorch originals of the architectures, which `python -m parity check` compares with."""

from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from resnet_flax.errors import UserError
from resnet_flax.models.options import ModelOptions
from resnet_flax.models.registry import get_architecture


class Residual(nn.Module):
    """3x3 conv, BN, ReLU, 3x3 conv, BN, plus the input (through a bare convolution where the shape changes), ReLU.

    Zhang et al., "Dive into Deep Learning", section 8.6. Every convolution has a bias.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, shortcut_kernel: int | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = None
        if shortcut_kernel is not None:
            self.conv3 = nn.Conv2d(in_channels, channels, shortcut_kernel, stride, shortcut_kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.conv3 is None else self.conv3(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


def stage(in_channels: int, channels: int, shortcut_kernel: int) -> nn.Sequential:
    """Two Residuals; the first halves the size where the number of channels changes."""
    first = Residual(channels, channels)
    if in_channels != channels:
        first = Residual(in_channels, channels, stride=2, shortcut_kernel=shortcut_kernel)
    return nn.Sequential(first, Residual(channels, channels))


class ResidualNet(nn.Module):
    """torchvision's stem, four stages of two Residuals and a linear head, under torchvision's names."""

    def __init__(self, *, shortcut_kernel: int = 1, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(64, 64, shortcut_kernel)
        self.layer2 = stage(64, 128, shortcut_kernel)
        self.layer3 = stage(128, 256, shortcut_kernel)
        self.layer4 = stage(256, 512, shortcut_kernel)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class CifarResNet(nn.Module):
    """The networks of He et al. 2015 (arXiv:1512.03385), section 4.2, under torchvision's names and with its blocks.

    Args:
        layers: blocks in each of the three stages, 16, 32 and 64 wide.
        projects: whether the shortcuts between stages are 1x1 convolutions with a norm (option B); else every second
            pixel and zeros in the new channels, half of them on either side (option A).
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, layers: tuple[int, ...], *, num_classes: int = 10, projects: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.maxpool = nn.Identity()
        features = 16
        for number, (depth, planes) in enumerate(zip(layers, (16, 32, 64), strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if number and index == 0 else 1
                downsample: nn.Module | None = None
                if stride == 2 and projects:
                    downsample = nn.Sequential(
                        nn.Conv2d(features, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
                    )
                elif stride == 2:
                    downsample = ZeroPadding(planes - features)
                blocks.append(BasicBlock(features, planes, stride, downsample))
                features = planes
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class ZeroPadding(nn.Module):
    """Every second pixel, with zeros in the new channels, half of them on either side."""

    def __init__(self, new: int):
        super().__init__()
        self.edges = (0, 0, 0, 0, new // 2, new - new // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], self.edges)


def torch_network(
    name: str, *, num_classes: int, in_channels: int, small_images: bool = False, options: ModelOptions | None = None
) -> nn.Module:
    """The PyTorch network that `resnet_flax.models` calls `name`, with PyTorch's initial values.

    Raises:
        UserError: if PyTorch's network has no such option.
    """
    row, options = get_architecture(name), options or ModelOptions()
    model = row.original(row, num_classes, options.output_stride or 32)
    path, first = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    window = (first.kernel_size, first.stride, first.padding)
    if small_images:
        features = next(model.bn1.parameters()).shape[0]
        model.conv1 = nn.Conv2d(in_channels, features, 3, 1, 1, bias=first.bias is not None)
        model.maxpool = nn.Identity()
    elif in_channels != row.in_channels:
        parent, _, attribute = path.rpartition(".")
        first = nn.Conv2d(in_channels, first.out_channels, *window, bias=first.bias is not None)
        setattr(model.get_submodule(parent), attribute, first)
    with_options(model, options)
    if row.initialization == "xavier_uniform":
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
    return model


def with_options(model: Any, options: ModelOptions) -> None:
    """Changes a network to what `options` describe, but for the output stride, which it is built with.

    Raises:
        UserError: if a shortcut cannot be without its stride.
    """
    if options.max_pool_ceil and isinstance(model.maxpool, nn.MaxPool2d):
        model.maxpool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    if options.norm_epsilon is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.eps = options.norm_epsilon
    stages = [stage for stage in model.children() if isinstance(stage, nn.Sequential) and hasattr(stage[0], "bn2")]
    if options.last_stride == 1:
        _remove_stride(stages[-1][0])
    if options.stride_in_first_1x1:
        for stage in stages:
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride


def _remove_stride(block: Any) -> None:
    block.conv1.stride = block.conv2.stride = (1, 1)
    if hasattr(block, "aa"):
        block.aa = nn.Identity()
    shortcut = getattr(block, "downsample", None)
    if not isinstance(shortcut, nn.Sequential) or getattr(shortcut[0], "kernel_size", 1) not in (2, (1, 1)):
        raise UserError("PyTorch's network has a shortcut that needs its stride; nothing to compare last_stride=1 with")
    if isinstance(shortcut[0], nn.AvgPool2d):
        shortcut[0] = nn.Identity()
    else:
        shortcut[0].stride = (1, 1)
