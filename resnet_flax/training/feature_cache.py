"""A frozen backbone's features, computed once: then only the head is trained, and evaluated, on them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from resnet_flax.data import SmallImageTransform, Source, evaluation_batches, prefetch_to_device
from resnet_flax.data.arrays import ArraySource
from resnet_flax.data.on_device import normalize
from resnet_flax.data.transforms import Transform
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet
from resnet_flax.training.setup import HEAD, Setup
from resnet_flax.training.step import Prepare

AS_IT_IS = SmallImageTransform(padding=0, flip=0.0)


class HeadSetup(Setup):
    """A run on features: a batch's "image" is (N, F), and goes to the head as it is."""

    train_transform = eval_transform = AS_IT_IS

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

    def features_of(self, source: Source, transform: Transform, console: Console) -> ArraySource:
        """The source with float32 features (N, F) where it had images."""
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
        found = [np.asarray(pooled(arrays, batch["image"]), np.float32) for batch in shown]
        return ArraySource(
            np.concatenate(found)[: len(source)],
            source.labels,
            spec=source.spec,
            split=source.split,
            class_names=source.class_names,
        )


def cache_features(setup: Setup, source: Source, test: Source, console: Console) -> tuple[Setup, Source, Source]:
    """The same run on features in the place of images, its head apart.

    Raises:
        UserError: if anything but the head is trained.
    """
    cached = HeadSetup(setup.config, setup.mesh, setup.facts)
    network, data = cached.network, setup.config.data
    if trained := [name for name in network.parameters if name not in network.frozen and not name.startswith(HEAD)]:
        raise UserError(
            f"--cache-features needs all but the head frozen, and {len(trained)} other parameters are trained "
            f"({trained[0]} first); add --freeze all-but-head, or leave --cache-features out"
        )
    return (
        cached,
        cached.features_of(source, data.train_transform, console),
        cached.features_of(test, data.eval_transform, console),
    )
