"""A frozen backbone's features, computed once: then only the head is trained, and evaluated, on them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from resnet_flax.data import EvaluationTransform, SmallImageTransform, Source, evaluation_batches, prefetch_to_device
from resnet_flax.data.source import Sample
from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.setup import Setup

HEAD = "fc."


class FeatureSource(Source):
    """A source whose "image" is its pooled features (F,), in the order and with the labels of the original."""

    def __init__(self, original: Source, features: np.ndarray):
        self.spec, self.split, self.class_names = original.spec, original.split, original.class_names
        self.channels, self.features, self._labels = original.channels, features, original.labels

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.features[index], "label": int(self._labels[index])}


def check_cacheable(config: TrainConfig) -> None:
    """Raises UserError for settings under which an image's features change from one epoch to the next."""
    transform, loss = config.data.train_transform, config.loss
    if isinstance(transform, SmallImageTransform):
        random = (transform.padding or transform.flip) and "use --train-transform.padding 0 --train-transform.flip 0"
    else:
        random = not isinstance(transform, EvaluationTransform) and "use a recipe without them, such as finetune"
    for conflict, way_out in {
        "random training transforms": random,
        "mixup, cutmix or random erasing": (loss.mixup or loss.cutmix or loss.random_erasing) and "turn them off",
        "--stochastic-depth": config.model.stochastic_depth and "leave it out",
        "--train-frozen-statistics": config.model.train_frozen_statistics and "leave it out",
        "--skip-corrupt": config.run.skip_corrupt and "mend or remove damaged images",
        "--distributed": config.run.distributed and "use one process",
    }.items():
        if way_out:
            raise UserError(f"--cache-features does not go with {conflict}; {way_out}, or leave --cache-features out")


def cache_features(setup: Setup, source: Source, test: Source, console: Console) -> tuple[Source, Source]:
    """Both sources with features in the place of images.

    Raises:
        UserError: if anything but the head is trained.
    """
    network = setup.network
    if trained := [name for name in network.parameters if name not in network.frozen and not name.startswith(HEAD)]:
        raise UserError(
            f"--cache-features needs all but the head frozen, and {len(trained)} other parameters are trained "
            f"({trained[0]} first); add --freeze all-but-head, or leave --cache-features out"
        )
    arrays = jax.device_put(setup.initial_arrays(), setup.replicated)

    @jax.jit
    def pooled(arrays: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        features = network.model(arrays).features(setup.normalize(images))["pool"]
        return features.astype(np.promote_types(features.dtype, np.float32))

    def features_of(source: Source, transform: Any) -> FeatureSource:
        size = setup.config.batch_size
        batches = evaluation_batches(source, transform, batch_size=size, workers=setup.config.run.workers)
        on_device = prefetch_to_device(({"image": batch["image"]} for batch in batches), setup.sharded)
        shown = track(
            on_device,
            f"features of {len(source):,} {source.split} images",
            total=-(-len(source) // size),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        features = [np.asarray(pooled(arrays, batch["image"])) for batch in shown]
        return FeatureSource(source, np.concatenate(features)[: len(source)])

    data = setup.config.data
    return features_of(source, data.train_transform), features_of(test, data.eval_transform)
