"""Preprocessing on the device, inside the jitted step: normalisation, mixup, cutmix, random erasing.

Pure functions with static shapes: they work under `jit`, `shard_map` and `vmap`, and each device may run them on its
own part of the batch with its own key. Semantics are torchvision's (`transforms.v2` and the
classification reference recipes); the random numbers are JAX's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: ArrayLike,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """uint8 (..., H, W, C) -> `dtype`: x / 255, then (x - mean) / std per channel, computed in float32.

    `mean` and `std` have C entries each, or one for all channels; defaults are torchvision's for ImageNet.
    """
    shift, scale = (jnp.asarray(values, jnp.float32) for values in (mean, std))
    return _normalized(jnp.asarray(images), shift, scale, dtype)


@partial(jax.jit, static_argnames="dtype", inline=True)  # outside of another program one to compile, not eight
def _normalized(images: jax.Array, shift: jax.Array, scale: jax.Array, dtype: DTypeLike) -> jax.Array:
    ones = (1,) * (images.ndim - 1)
    shift, scale = (values.reshape(*ones, -1) for values in (shift, scale))
    return ((images.astype(jnp.float32) / 255 - shift) / scale).astype(dtype)


def mixup(images: jax.Array, targets: jax.Array, weight: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Blends every sample with the one before it: weight * own + (1 - weight) * previous (Zhang et al., 2018).

    images (B, H, W, C) floating point, targets (B, classes) probabilities.
    """
    return _blend(images, weight), _blend(targets, weight)


def _blend(values: jax.Array, weight: ArrayLike) -> jax.Array:
    weight = jnp.asarray(weight, values.dtype)
    return jnp.roll(values, 1, axis=0) * (1 - weight) + values * weight


def cutmix(
    images: jax.Array, targets: jax.Array, weight: ArrayLike, center: tuple[ArrayLike, ArrayLike]
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of the previous sample over each, targets blended by area (Yun et al., 2019).

    The box around `center` (row, column) has sides of sqrt(1 - weight) times the image's, clipped at the border.
    """
    height, width = images.shape[1:3]
    reach = 0.5 * jnp.sqrt(1 - jnp.asarray(weight, jnp.float32))
    top, bottom = _span(center[0], reach, height)
    left, right = _span(center[1], reach, width)
    inside = _box(height, width, top, bottom, left, right)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return jnp.where(inside[None, :, :, None], jnp.roll(images, 1, axis=0), images), _blend(targets, kept)


def _span(center: ArrayLike, reach: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    half = jnp.floor(reach * side).astype(jnp.int32)
    return jnp.maximum(center - half, 0), jnp.minimum(center + half, side)


def _box(height: int, width: int, top: ArrayLike, bottom: ArrayLike, left: ArrayLike, right: ArrayLike) -> jax.Array:
    """bool (height, width), True in [top, bottom) x [left, right)."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None, :]


def mixup_cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mixup or cutmix for the whole batch, one of the two at random if both alphas are positive; none if neither is.

    The weight is drawn from Beta(alpha, alpha), as in torchvision's `RandomChoice([MixUp, CutMix])`.

    Args:
        images: floating point (B, H, W, C).
        targets: probabilities (B, classes), such as one-hot labels.
    """
    choose, draw, place = jax.random.split(key, 3)

    def mix(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mixup(images, targets, jax.random.beta(draw, mixup_alpha, mixup_alpha))

    def cut(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        height, width = images.shape[1:3]
        center = jax.random.randint(place, (2,), 0, jnp.array([height, width]))
        return cutmix(images, targets, jax.random.beta(draw, cutmix_alpha, cutmix_alpha), (center[0], center[1]))

    if mixup_alpha > 0 and cutmix_alpha > 0:
        return jax.lax.cond(jax.random.bernoulli(choose), mix, cut, images, targets)
    if mixup_alpha > 0:
        return mix(images, targets)
    if cutmix_alpha > 0:
        return cut(images, targets)
    return images, targets


def erasing_box(
    key: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Draws one rectangle as torchvision's `RandomErasing.get_params`: int32 (top, left, height, width).

    Up to ten attempts with an area uniform in `scale` (a fraction of the image) and an aspect ratio log-uniform in
    `ratio`; the first that is smaller than the image in both directions is used. Height and width are 0 if none is.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    bounds = jnp.log(jnp.array(ratio))
    aspect = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=bounds[0], maxval=bounds[1]))
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = (jnp.where(fits[first], sides[first], 0).astype(jnp.int32) for sides in (heights, widths))
    top = jax.random.randint(top_key, (), 0, height - h + 1)
    left = jax.random.randint(left_key, (), 0, width - w + 1)
    return jnp.stack([top, left, h, w])


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float = 0.0,
) -> jax.Array:
    """Sets a rectangle of some samples to `value`, drawn independently for each sample (Zhong et al., 2020).

    images (B, H, W, C), already normalised: the value 0 is then the mean colour, as in torchvision's recipes.
    """
    batch, height, width, _ = images.shape
    happens, boxes = jax.random.split(key)

    def mask(key: jax.Array) -> jax.Array:
        top, left, h, w = erasing_box(key, height, width, scale, ratio)
        return _box(height, width, top, top + h, left, left + w)

    erased = jax.random.bernoulli(happens, probability, (batch, 1, 1)) & jax.vmap(mask)(jax.random.split(boxes, batch))
    return jnp.where(erased[..., None], jnp.asarray(value, images.dtype), images)
