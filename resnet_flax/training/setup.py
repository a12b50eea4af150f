"""From a configuration to the parts of a run: network, optimiser, step, evaluation, batches on the devices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.stages import Wrapped

from resnet_flax.data import (
    EvaluationTransform,
    SmallImageTransform,
    Source,
    evaluation_batches,
    prefetch_to_device,
    training_batches,
)
from resnet_flax.data.augment import BINS
from resnet_flax.data.on_device import normalize
from resnet_flax.data.transforms import Transform
from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm
from resnet_flax.models import ResNet
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.evaluation import make_evaluate
from resnet_flax.training.loss import make_loss, make_prepare
from resnet_flax.training.optimizers import Schedule, make_optimizer, make_schedule
from resnet_flax.training.sharding import AXIS, check_batch_size, replicated, sharded
from resnet_flax.training.state import Arrays, Network, TrainState, create_state, initial_arrays
from resnet_flax.training.step import Prepare, make_train_step
from resnet_flax.weights.load import create_model

HEAD = "fc."
ALL_BUT_HEAD = f"(?!{re.escape(HEAD)})"  # matches every path that does not begin so


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with its shorthands spelt out.

    Raises:
        UserError: for settings that contradict each other.
    """
    schedule, data = config.schedule, config.data
    _check_minima(config)
    if schedule.warmup_epochs >= schedule.epochs:
        raise UserError(
            f"--warmup-epochs {schedule.warmup_epochs} leaves nothing of --epochs {schedule.epochs}; "
            "lower the first or raise the second"
        )
    if config.loss.bce_threshold is not None and config.loss.loss != "binary_cross_entropy":
        raise UserError("--bce-threshold goes with --loss binary_cross_entropy only")
    if config.run.target is not None and not config.run.dry_run:
        raise UserError("--target compiles for GPUs that are not here and goes with --dry-run only")
    if config.model.train_frozen_statistics and not config.model.freeze:
        raise UserError("--train-frozen-statistics goes with --freeze only")
    if config.model.cache_features:
        _check_cacheable(config)
    if (size := data.image_size) is not None:
        train, test = resized(data.train_transform, size), resized(data.eval_transform, size)
        data = replace(data, train_transform=train, eval_transform=test, image_size=None)
    return replace(config, data=data)


def _check_minima(config: TrainConfig) -> None:
    optimizer, run, transform = config.optimizer, config.run, config.data.train_transform
    for name, value in {
        "batch-size": config.batch_size,
        "accumulate": optimizer.accumulate,
        "ema-every": optimizer.ema_every,
        "epochs": config.schedule.epochs,
        "step-epochs": config.schedule.step_epochs,
        "log-every": run.log_every,
        "checkpoint-every": run.checkpoint_every,
        "keep": run.keep,
        "repeats": config.data.repeats,
        "image-size": config.data.image_size,
        "train-transform.size": getattr(transform, "size", None),
        "train-transform.crop-size": getattr(transform, "crop_size", None),
        "eval-transform.resize-size": config.data.eval_transform.resize_size,
        "eval-transform.crop-size": config.data.eval_transform.crop_size,
    }.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} should be at least 1, found {value}")
    for name, value in {
        "seed": config.seed,
        "warmup-epochs": config.schedule.warmup_epochs,
        "workers": run.workers,
        "skip-corrupt": run.skip_corrupt,
        "train-transform.padding": getattr(transform, "padding", 0),
    }.items():
        if value < 0:
            raise UserError(f"--{name} should be at least 0, found {value}")
    if not all(0 < value < math.inf for value in config.data.std):
        raise UserError(f"--std should be above 0, found {' '.join(map(str, config.data.std))}")
    if not 0 <= optimizer.learning_rate < math.inf:
        raise UserError(f"--learning-rate should be a number from 0 on, found {optimizer.learning_rate}")
    if not 0 <= (magnitude := getattr(transform, "rand_augment_magnitude", 0)) < BINS:
        raise UserError(f"--train-transform.rand-augment-magnitude should be 0 to {BINS - 1}, found {magnitude}")


def resized(transform: Any, size: int) -> Any:
    """The transform for images of another size, `size` on a side."""
    if isinstance(transform, SmallImageTransform):
        return replace(transform, size=size)
    if not isinstance(transform, EvaluationTransform):
        return replace(transform, crop_size=size)
    resize, crop = transform.resize_size, transform.crop_size
    resize = round(resize * size / crop) if resize and crop else size  # the same share of the image is cut away
    return replace(transform, resize_size=resize, crop_size=size)


def _check_cacheable(config: TrainConfig) -> None:
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


@dataclass(frozen=True)
class DataFacts:
    """What of a data set the model and the schedule depend on."""

    images: int
    channels: int
    num_classes: int


@dataclass(frozen=True)
class Setup:
    """The parts of a run, each built when first asked for.

    Attributes:
        config: resolved.
        mesh: all devices.
        facts: of the training set.
    """

    config: TrainConfig
    mesh: Mesh
    facts: DataFacts

    def __post_init__(self):
        check_batch_size(self.config.batch_size, self.mesh.size, self.config.optimizer.accumulate)
        data = self.config.data
        if self.facts.num_classes < 2:
            raise UserError(f"{data.data} has one class only; there is nothing to tell apart")
        for name, values in (("mean", data.mean), ("std", data.std)):
            if len(values) not in (1, self.facts.channels):
                raise UserError(
                    f"--{name} has {len(values)} values, but the images of {data.data} have "
                    f"{self.facts.channels} channel(s); give one value, or one for each channel"
                )

    @cached_property
    def steps_per_epoch(self) -> int:
        return max(self.facts.images // self.config.batch_size, 1)

    @cached_property
    def total_steps(self) -> int:
        return self.config.schedule.epochs * self.steps_per_epoch

    def build_model(self) -> ResNet:
        """The model as the run starts with it: random, or with the configured weights, whose stem it then has."""
        model = self.config.model
        options: dict[str, Any] = {}
        if model.dtype == "bfloat16":
            options["dtype"] = jnp.bfloat16
        if model.sync_bn and self.mesh.size > 1:
            options["norm_layer"] = partial(BatchNorm, axis_name=AXIS)
        if model.stochastic_depth:
            options["stochastic_depth"] = model.stochastic_depth
        if model.weights is None:
            options |= {"small_images": model.small_images, "zero_init_residual": model.zero_init_residual}
        else:
            options["weights"] = model.weights
        network = create_model(
            model.name,
            num_classes=self.facts.num_classes,
            in_channels=self.facts.channels,
            rngs=nnx.Rngs(self.config.seed),
            **options,
        )
        if model.weights is not None and model.small_images and not network.small_images:
            raise UserError(f"{model.weights} has the stem for large images; add --no-small-images")
        return network

    @cached_property
    def _model(self) -> ResNet:
        """Its structure, and with weights its arrays too."""
        return nnx.eval_shape(self.build_model) if self.config.model.weights is None else self.build_model()

    @cached_property
    def network(self) -> Network:
        model = self.config.model
        freeze = [ALL_BUT_HEAD if pattern == "all-but-head" else pattern for pattern in model.freeze]
        return Network(self._model, freeze, train_frozen_statistics=model.train_frozen_statistics)

    @cached_property
    def schedule(self) -> Schedule:
        return make_schedule(self.config.schedule, self.config.optimizer.learning_rate, self.steps_per_epoch)

    @cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return make_optimizer(self.config.optimizer, self.schedule, self.network)

    # What becomes of a batch's "image"; training on cached features replaces these five.

    @property
    def train_transform(self) -> Transform:
        return self.config.data.train_transform

    @property
    def eval_transform(self) -> Transform:
        return self.config.data.eval_transform

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 images -> the model's input."""
        return normalize(images, self.config.data.mean, self.config.data.std)

    @property
    def prepare(self) -> Prepare:
        data = self.config.data
        return make_prepare(self.config.loss, self.facts.num_classes, data.mean, data.std)

    def logits(self, model: ResNet, inputs: jax.Array) -> jax.Array:
        return model(inputs)

    @cached_property
    def train_step(self) -> Wrapped:
        config = self.config.optimizer
        return make_train_step(
            self.network,
            self.optimizer,
            self.schedule,
            make_loss(self.config.loss),
            self.prepare,
            forward=self.logits,
            mesh=self.mesh,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            ema_every=config.ema_every,
            ema_start=self.config.schedule.warmup_epochs * self.steps_per_epoch,
            skip_nonfinite=self.config.run.on_nan == "skip",
        )

    @cached_property
    def evaluate(self) -> Callable:
        def forward(model: ResNet, images: jax.Array) -> jax.Array:
            return self.logits(model, self.normalize(images))

        return make_evaluate(self.network, self.facts.num_classes, forward, mesh=self.mesh)

    def initial_arrays(self) -> Arrays:
        """Parameters and statistics as the run starts with them."""
        if self.config.model.weights is None:
            return initial_arrays(self.network, self.build_model)
        return self.network.arrays(self._model)

    def state(self, arrays: Arrays) -> TrainState:
        """The training state before the first step, on all devices."""
        create = partial(create_state, self.network, optimizer=self.optimizer, seed=self.config.seed, ema=self.uses_ema)
        return jax.jit(create, out_shardings=self.replicated)(jax.tree.map(jnp.asarray, arrays))

    @property
    def uses_ema(self) -> bool:
        return self.config.optimizer.ema_decay is not None

    @property
    def replicated(self) -> Sharding:
        return replicated(self.mesh) if self.mesh.size > 1 else SingleDeviceSharding(self.mesh.devices.flat[0])

    @property
    def sharded(self) -> Sharding:
        return sharded(self.mesh) if self.mesh.size > 1 else self.replicated

    @property
    def _share(self) -> dict[str, int]:
        """This host's part of each batch."""
        hosts = jax.process_count()
        return {
            "batch_size": self.config.batch_size // hosts,
            "shard_index": jax.process_index(),
            "shard_count": hosts,
            "workers": self.config.run.workers,
            "skip_corrupt": self.config.run.skip_corrupt,
        }

    def training_batches(self, source: Source, start_step: int) -> Iterator[dict[str, jax.Array]]:
        """{"image", "label"} on the devices, from `start_step` on, without end."""
        config = self.config
        batches = training_batches(
            source,
            self.train_transform,
            seed=config.seed,
            start_step=start_step,
            repeats=config.data.repeats,
            **self._share,
        )
        wanted = ({name: batch[name] for name in ("image", "label")} for batch in batches)
        return prefetch_to_device(wanted, self.sharded)

    def evaluation_batches(self, source: Source) -> Iterator[dict[str, jax.Array]]:
        """{"image", "label", "mask"} on the devices, once through."""
        batches = evaluation_batches(source, self.eval_transform, **self._share)
        return prefetch_to_device(batches, self.sharded)


def facts_of(source: Source) -> DataFacts:
    return DataFacts(len(source), source.channels, source.num_classes)
