"""Losses over logits and soft targets, and the preprocessing of a batch on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from resnet_flax.data.on_device import mixup_cutmix, normalize, random_erasing
from resnet_flax.training.config import LossConfig


def make_loss(
    config: LossConfig, class_weights: Sequence[float] | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(logits (N, classes), targets (N, classes)) -> the mean loss.

    Cross-entropy is averaged over the batch, as in `torch.nn.CrossEntropyLoss`; binary cross-entropy over batch and
    classes, as in `torch.nn.BCEWithLogitsLoss`. Label smoothing spreads its share uniformly over all classes
    (arXiv:1512.00567, section 7).

    With weights of the classes, cross-entropy is the weighted mean of `torch.nn.CrossEntropyLoss(weight)`: each class's
    term is multiplied by its weight, and the sum divided by the sum of the targets' weights (before smoothing). Binary
    cross-entropy multiplies the terms, as `torch.nn.BCEWithLogitsLoss(weight)`.
    """

    def smoothed(targets: jax.Array) -> jax.Array:
        share = config.label_smoothing
        return targets * (1 - share) + share / targets.shape[-1] if share else targets

    def weights_like(logits: jax.Array) -> jax.Array:
        return jnp.asarray(class_weights, logits.dtype)[None]

    def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if class_weights is not None:
            weights = weights_like(logits)
            total = -(weights * smoothed(targets) * jax.nn.log_softmax(logits)).sum()
            # A batch whose classes all weigh nothing has the loss 0, and no gradient.
            share = (weights * targets).sum()
            return total / jnp.where(share > 0, share, 1)
        return optax.softmax_cross_entropy(logits, smoothed(targets)).mean()

    def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
        targets = smoothed(targets)
        if config.bce_threshold is not None:
            targets = (targets > config.bce_threshold).astype(logits.dtype)
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        return (losses if class_weights is None else losses * weights_like(logits)).mean()

    return cross_entropy if config.loss == "cross_entropy" else binary_cross_entropy


def make_prepare(
    config: LossConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """(key, {"image": uint8 (N, H, W, C), "label": int (N,)}) -> (images (N, H, W, C), targets (N, classes)).

    It normalises, erases and mixes, in the order of torchvision's references.

    Args:
        mean, std: one per channel, or one for all; of images in [0, 1].
    """

    def prepare(key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        erase_key, mix_key = jax.random.split(key)
        images = normalize(batch["image"], mean, std)
        targets = jax.nn.one_hot(batch["label"], num_classes)
        if config.random_erasing:
            images = random_erasing(erase_key, images, probability=config.random_erasing)
        return mixup_cutmix(mix_key, images, targets, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)

    return prepare
