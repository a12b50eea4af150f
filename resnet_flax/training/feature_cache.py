"""The features of a frozen backbone, computed once, on which the head alone is trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from resnet_flax.data import EvaluationTransform, Source, evaluation_batches, prefetch_to_device
from resnet_flax.data.on_device import normalize
from resnet_flax.data.source import Sample
from resnet_flax.data.transforms import Transform
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet
from resnet_flax.training.setup import HEAD, Setup
from resnet_flax.training.step import Prepare


class Unchanged:
    """The transform of features, which are used as they are; a `BatchTransform`."""

    fixed = None

    def augment_batch(self, features: np.ndarray, rngs: object) -> np.ndarray:
        return features

    def __call__(self, features: np.ndarray, rng: object) -> np.ndarray:
        return features


class FeatureSource(Source):
    """The features of a source's images: float32 (F,) in place of "image", float32 (N, F) of all of them.

    Args:
        features: (N, F), in the order of `source`.
        source: where labels, classes and names come from.
    """

    def __init__(self, features: np.ndarray, source: Source):
        self.features, self._labels, self._notes = features, source.labels, source.notes()
        self.origin, self.splits = source.origin, source.splits
        self.spec, self.split, self.class_names, self.channels = (
            source.spec,
            source.split,
            source.class_names,
            source.channels,
        )

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        return self._notes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.features[index], "label": int(self._labels[index])}

    def transformed(self, transform: EvaluationTransform | None) -> np.ndarray:
        return self.features


class HeadSetup(Setup):
    """A run on features: a batch's "image" is (N, F), and the input of the head."""

    train_transform = eval_transform = Unchanged()

    def normalize(self, images: jax.Array) -> jax.Array:
        return images

    @property
    def prepare(self) -> Prepare:
        def prepare(key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return batch["image"], jax.nn.one_hot(batch["label"], self.facts.num_classes)

        return prepare

    def logits(self, model: ResNet, inputs: jax.Array) -> jax.Array:
        assert model.fc is not None  # a data set has classes
        return model.fc(inputs)

    def features_of(self, source: Source, transform: Transform, console: Console) -> FeatureSource:
        """Runs the backbone on every image of the source, with a progress bar in a terminal."""
        config, network = self.config, self.network
        arrays = jax.device_put(self.initial_arrays(), self.replicated)
        prepared = partial(normalize, mean=config.data.mean, std=config.data.std)

        @jax.jit
        def pooled(arrays: dict[str, jax.Array], images: jax.Array) -> jax.Array:
            return network.model(arrays).features(prepared(images))["pool"]

        batches = evaluation_batches(source, transform, batch_size=config.batch_size, workers=config.run.workers)
        shown = track(
            prefetch_to_device(({"image": batch["image"]} for batch in batches), self.sharded),
            f"features of {len(source):,} {source.split} images",
            total=-(-len(source) // config.batch_size),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        features = []
        for batch in shown:
            if not features and source.split == "train" and (note := self.doubt(batch["image"])):
                console.print(f"warning: {note}", highlight=False, soft_wrap=True)
            features.append(np.asarray(pooled(arrays, batch["image"]), np.float32))
        return FeatureSource(np.concatenate(features)[: len(source)], source)


def cache_features(setup: Setup, source: Source, test: Source, console: Console) -> tuple[Setup, Source, Source]:
    """The same run on features instead of images: (its setup, training set, test set).

    Raises:
        UserError: if anything but the head is trained.
    """
    cached = HeadSetup(setup.config, setup.mesh, setup.facts, setup.loaded)
    network, data = cached.network, setup.config.data
    if trained := [name for name in network.parameters if name not in network.frozen and not name.startswith(HEAD)]:
        raise UserError(
            f"--cache-features needs everything but the head frozen, but {len(trained)} other parameters are trained "
            f"({trained[0]} is the first); add --freeze all-but-head, or remove --cache-features"
        )
    return (
        cached,
        cached.features_of(source, data.train_transform, console),
        cached.features_of(test, data.eval_transform, console),
    )
