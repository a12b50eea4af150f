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


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter and statistic with random values through which a signal of size 1 keeps its size.

    Fresh networks hide faults: gammas of 1 or 0, statistics of 0 and 1, biases of 0. Here nothing is symmetric, the
    statistics differ from the batch's, and each branch counts. `parity.randomize` gives weights a mean as well, with
    which a deep network's signal grows in eval mode (to 10^6 in a ResNet-18's logits, beside which no bias shows in
    float32); networks that are compared in eval mode take these.
    """
    rng = np.random.default_rng(seed)
    values = {}
    for key, tensor in model.state_dict().items():
        shape, field = tuple(tensor.shape), key.rsplit(".", 1)[-1]
        if field == "num_batches_tracked":
            value = np.asarray(rng.integers(1, 1000))
        elif field == "running_var":
            value = rng.uniform(0.5, 2.0, shape)
        elif field == "running_mean":
            value = rng.normal(0, 0.3, shape)
        elif len(shape) >= 2:
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif field == "weight":
            value = rng.uniform(0.3, 1.1, shape) * rng.choice([-1, 1, 1, 1], shape)
        else:
            value = rng.normal(0, 0.2, shape)
        values[key] = torch.from_numpy(value).to(tensor.dtype)
    model.load_state_dict(values)
    return model


def nchw(images: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    """A copy of NHWC images as a torch tensor (N, C, H, W)."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=dtype)
