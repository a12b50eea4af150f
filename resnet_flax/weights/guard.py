"""Whether images look as weights expect them, by the first norm: its statistics are those of the training images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnet_flax.data.on_device import normalize
from resnet_flax.layers import BatchNorm
from resnet_flax.models import ResNet

MOST = 16
"""Images that are looked at."""
FEWEST = 8
"""Images from which on a bootstrap is worth something; fewer have to be off by `FAR`, whatever they show."""
DRAWS = 200
FAR = 3.0
"""A logarithm of a ratio of variances, 20: no photograph's own contrast."""
ERRORS = 4.0
"""Standard deviations of the bootstrap that a difference has to have."""

Pixels = Callable[[jax.Array], jax.Array]

_CAFFE = (103.939 / 255, 116.779 / 255, 123.68 / 255)  # of blue, green, red
_RANGES: dict[str, Pixels] = {
    "from 0 to 255": lambda images: normalize(images, (0,), (1 / 255,)),
    "from 0 to 1": lambda images: normalize(images, (0,), (1,)),
    "from -1 to 1": lambda images: normalize(images, (0.5,), (0.5,)),
}


def input_warning(model: ResNet, images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> str | None:
    """A sentence if the first norm's statistics fit the images much better in another order or range; else None.

    Args:
        model: with weights.
        images: uint8 (N, H, W, C), of which the first `MOST` are looked at.
        mean, std: of the normalisation that is about to be used.
    """
    convolution, norm = (model.conv1, model.bn1) if not isinstance(model.conv1, nnx.List) else model.conv1[:2]
    if not isinstance(norm, BatchNorm) or not len(images):
        return None
    images, center, var = images[:MOST], norm.mean[...], norm.var[...]
    if (center == 0).all() and (var == 1).all():
        return None  # of a new network, or folded into the convolution
    graph, state = nnx.split(convolution)

    @jax.jit
    def moments(state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graph, state)(x).astype(jnp.float32)
        z = (y - center.reshape(1, 1, 1, -1)) * jax.lax.rsqrt(var + norm.epsilon).reshape(1, 1, 1, -1)
        return z.mean((1, 2)), jnp.square(z).mean((1, 2))

    count = len(images)
    weights = np.random.default_rng(0).multinomial(count, [1 / count] * count, DRAWS) / count
    weights = np.concatenate([np.full((1, count), 1 / count), weights])

    def distances(prepare: Pixels) -> tuple[np.ndarray, float]:
        """(1 + DRAWS,) distances from the norm's statistics, the first of the images themselves; the variance ratio."""
        each_mean, each_square = map(np.asarray, moments(state, prepare(jnp.asarray(images))))
        means = weights @ each_mean
        logs = np.log(np.maximum(weights @ each_square - np.square(means), 1e-12))
        apart = np.median(np.abs(logs), 1) + np.median(np.arcsinh(np.abs(means)), 1)
        return apart, float(np.exp(np.median(logs[0])))

    own, ratio = distances(lambda x: normalize(x, mean, std))
    others = {name: (prepare, 2.0) for name, prepare in _RANGES.items()}
    if images.shape[-1] == 3:
        others["in BGR"] = (lambda x: normalize(x[..., ::-1], mean, std), 1.0)
        others["in BGR from 0 to 255, less Caffe's mean"] = (
            lambda x: normalize(x[..., ::-1], _CAFFE, (1 / 255,)),
            2.0,
        )
    best, nearest = None, own[0]
    for name, (prepare, factor) in others.items():
        apart, _ = distances(prepare)
        if apart[0] < nearest and _is_told(own - apart, factor * apart[0], count):
            best, nearest = name, apart[0]
    if best is None:
        return None
    seen = f"{ratio:.3g} times the variance that" if not 0.5 < ratio < 2 else "other means and variances than"
    return (
        f"the first norm sees {seen} its weights were trained with: are the images normalised as the weights expect? "
        f"Its statistics fit images {best}"
    )


def _is_told(gain: np.ndarray, least: float, count: int) -> bool:
    """Whether another order or range fits better for more than an accident of the images.

    Args:
        gain: (1 + DRAWS,), by how much it is nearer.
        least: what it has to be nearer by in any case, in a multiple of what remains: images of another kind than those
            trained on are off with every range, and a little less with some.
    """
    if count < FEWEST:
        return bool(gain[0] > FAR)
    return bool(gain[0] > max(least, ERRORS * float(gain[1:].std())))
