"""Whether the first norm is given what it was trained with: a look at a few images before a network is used on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.fingerprints.distance import distance
from resnet_flax.layers import BatchNorm, Sequential
from resnet_flax.models import ResNet

IMAGES = 16
"""How many are looked at."""
FAR = 2.5
"""The distance from which on there is a doubt: 12 times the variance, or a mean that is 2.5 standard deviations off.

Measured on a trained ResNet-50 (docs/fingerprints.md): single photographs prepared as it expects come to 2.1 at most,
[0, 1] for ImageNet's constants, or the reverse, to 3.2 and more, [0, 255] to 8 and more.
"""


def doubt(model: ResNet, images: Any) -> str | None:
    """A sentence if the inputs of the first norm are far from what its weights were trained with.

    It is silent about networks whose first norm keeps no statistics, or those of a new network.

    Args:
        model: with weights.
        images: float32 (N, H, W, C) as the network is given them, of which the first `IMAGES` are used.
    """
    layers, norm = _first_norm(model)
    if norm is None:
        return None
    mean, var = (np.asarray(statistic[...], np.float64) for statistic in (norm.mean, norm.var))
    if (mean == 0).all() and (var == 1).all():
        return None
    x = images[:IMAGES]
    for layer in layers:
        x = layer(x)
    pixels = np.asarray(x, np.float64).reshape(-1, len(mean))
    scale = np.sqrt(np.maximum(var + norm.epsilon, np.finfo(np.float32).tiny))
    off = (pixels.mean(0) - mean) / scale
    # As the fingerprint has it: a channel that is dead, and always was, counts as right.
    ratio = (pixels.var(0) + norm.epsilon) / np.square(scale)
    if not distance(off, ratio).mean() > FAR:
        return None
    return f"the first norm {_seen(off, ratio)}: are the images normalised as the weights expect?"


def _first_norm(model: Any) -> tuple[Sequence[Any], Any]:
    """The layers before the first norm, and that; None in its place unless it is a BatchNorm."""
    stem = model.conv1
    layers = [*stem, model.bn1] if isinstance(stem, Sequential) else [stem, model.bn1]
    place = next((number for number, layer in enumerate(layers) if not hasattr(layer, "kernel")), 0)
    norm = layers[place]
    return layers[:place], norm if isinstance(norm, BatchNorm) else None


def _seen(off: np.ndarray, ratio: np.ndarray) -> str:
    times = float(np.exp(np.log(np.maximum(ratio, np.finfo(np.float64).tiny)).mean()))
    if abs(np.log(times)) >= distance(off, np.ones_like(off)).mean():
        part = f"{times:.3g} times" if times > 1 else f"1/{1 / times:.3g} of"
        return f"sees {part} the variance that its weights were trained with"
    return f"sees a mean {np.abs(off).mean():.2g} standard deviations from the one that its weights were trained with"
