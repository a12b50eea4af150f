"""Photographs, and networks whose norms have their statistics."""

import functools

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn


@functools.cache
def patches(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 (count, size, size, 3), cut at random from scikit-learn's two photographs."""
    photos, rng = load_sample_images().images, np.random.default_rng(seed)
    images = []
    for index in range(count):
        photo = photos[index % 2]
        stride = int(rng.integers(1, 5))
        top, left = (int(rng.integers(length - stride * size)) for length in photo.shape[:2])
        images.append(photo[top : top + stride * size : stride, left : left + stride * size : stride])
    return np.stack(images)


def calibrated(network: nn.Module, images: np.ndarray) -> nn.Module:
    """The network with the statistics that float32 images (N, H, W, C) give its norms, in eval mode."""
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = None  # the average over all batches
            child.reset_running_stats()
    network.train()
    with torch.no_grad():
        for start in range(0, len(images), 64):
            network(torch.from_numpy(np.moveaxis(images[start : start + 64], -1, 1).copy()))
    return network.eval()


def small(channels: int = 3, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Three convolutions with norms; their biases and gammas are random."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((channels, 24), (24, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), activation()]
        nn.init.uniform_(layers[-2].weight, 0.5, 1.5)
        nn.init.normal_(layers[-2].bias)
    return nn.Sequential(*layers)
