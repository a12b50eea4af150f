"""The PyTorch originals of the architectures, which `python -m parity check` compares with."""

import torch
from torch import nn

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


def torch_network(name: str, *, num_classes: int, in_channels: int, small_images: bool = False) -> nn.Module:
    """The PyTorch network that `resnet_flax.models` calls `name`, with PyTorch's initial values."""
    row = get_architecture(name)
    model = row.original(row, num_classes)
    stem = model.conv1
    if small_images or in_channels != row.in_channels:
        window = (3, 1, 1) if small_images else (stem.kernel_size, stem.stride, stem.padding)
        model.conv1 = nn.Conv2d(in_channels, stem.out_channels, *window, bias=stem.bias is not None)
    if small_images:
        model.maxpool = nn.Identity()
    if row.initialization == "xavier_uniform":
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
    return model
