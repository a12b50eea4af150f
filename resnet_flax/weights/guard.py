"""Whether the first norm is given what it was trained with: a look at a few images before a network is used on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.fingerprints.distance import distance
from resnet_flax.layers import BatchNorm, Sequential
from resnet_flax.models import ResNet

IMAGES = 16
"""How many are looked at."""
SEVERAL = 8
FAR = (5.0, 2.5)
"""From which distance on there is a doubt, with fewer than `SEVERAL` images and with as many: a mean |log ratio of the
variances|, so 2.5 is 12 times the variance or a twelfth.

They lie between what was measured on a trained ResNet-50 (docs/fingerprints.md): normalised as it expects, single
photographs come to 3.3 at most, and eight or more of any kind to 1.7, random noise to 2.2; unnormalised, eight or more
come to 2.8 at least, and single photographs in [0, 255] to 6.6.
"""


def doubt(model: ResNet, images: Any) -> str | None:
    """A sentence if the inputs of the first norm are far from what its weights were trained with.

    None if they are not, and for networks whose first norm keeps no statistics, or those of a new network.

    Args:
        model: with weights.
        images: float32 (N, H, W, C) as the network is given them; the first `IMAGES` are used.
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
    whole = np.maximum(var + norm.epsilon, np.finfo(np.float32).tiny)
    off = (pixels.mean(0) - mean) / np.sqrt(whole)
    ratio = np.maximum(pixels.var(0) + norm.epsilon, np.finfo(np.float32).tiny) / whole
    if distance(off, ratio).mean() <= FAR[len(x) >= SEVERAL]:
        return None
    return f"the first norm sees {_seen(off, ratio)}: are the images normalised as the weights expect?"


def _first_norm(model: Any) -> tuple[Sequence[Any], BatchNorm | None]:
    """The layers before the first norm, and that; None in its place if it is no BatchNorm."""
    layers = [*model.conv1, model.bn1] if isinstance(model.conv1, Sequential) else [model.conv1, model.bn1]
    place = next(number for number, layer in enumerate(layers) if not hasattr(layer, "kernel"))
    norm = layers[place]
    return layers[:place], norm if isinstance(norm, BatchNorm) else None


def _seen(off: np.ndarray, ratio: np.ndarray) -> str:
    times = float(np.exp(np.log(ratio).mean()))
    if abs(np.log(times)) > 1:
        part = f"{times:.3g} times" if times > 1 else f"1/{1 / times:.3g} of"
        return f"{part} the variance that its weights were trained with"
    return f"means {np.abs(off).mean():.2g} standard deviations from those that its weights were trained with"
