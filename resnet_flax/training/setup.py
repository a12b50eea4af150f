"""From a configuration to the parts of a run: network, optimiser, step, evaluation, batches on the devices."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.stages import Wrapped

from parity.options import check_ranges
from resnet_flax.compiled.fold import Fold, known_card
from resnet_flax.data import Source, evaluation_batches, prefetch_to_device, steps_per_epoch, training_batches
from resnet_flax.data.fast_resize import require_fast_resize
from resnet_flax.data.on_device import normalize
from resnet_flax.data.transforms import TrainingTransform
from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm
from resnet_flax.models import ResNet, get_architecture
from resnet_flax.training.class_weights import class_weights
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.distillation import TaughtStep, Teacher, load_teacher
from resnet_flax.training.evaluation import make_evaluate
from resnet_flax.training.loss import make_loss, make_prepare
from resnet_flax.training.optimizers import Schedule, make_optimizer, make_schedule
from resnet_flax.training.progressive import stages
from resnet_flax.training.sharding import AXIS, check_batch_size, replicated, sharded
from resnet_flax.training.state import Arrays, Network, TrainState, create_state
from resnet_flax.training.step import Prepare, make_train_step
from resnet_flax.training.views import Crops, averaged
from resnet_flax.weights.guard import IMAGES, doubt
from resnet_flax.weights.load import create_model, load_pretrained, no_preprocessing

if TYPE_CHECKING:
    from resnet_flax.data.pipeline import ImageFunction
    from resnet_flax.weights.pretrained import Pretrained

logger = logging.getLogger("resnet_flax.training")

HEAD = "fc."
ALL_BUT_HEAD = f"(?!{re.escape(HEAD)})"  # matches every path that does not start with HEAD


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with `--image-size` and `--resize` applied to its transforms.

    Raises:
        UsageError: for a setting out of range, or settings that contradict each other.
    """
    check_ranges(config)
    schedule, data = config.schedule, config.data
    if schedule.warmup_epochs >= schedule.epochs:
        raise UserError(
            f"--warmup-epochs {schedule.warmup_epochs} must be less than --epochs {schedule.epochs}; "
            "lower the first or raise the second"
        )
    if config.loss.bce_threshold is not None and config.loss.loss != "binary_cross_entropy":
        raise UserError("--bce-threshold needs --loss binary_cross_entropy")
    if config.loss.teacher_model is not None and config.loss.teacher is None:
        raise UserError("--teacher-model needs --teacher, which names its weights")
    for option, value in (("--real-labels", config.run.real_labels), ("--synsets", config.run.synsets)):
        if value is not None and not config.run.evaluate:
            raise UserError(f"{option} needs --evaluate")
    if config.run.target is not None and not config.run.dry_run:
        raise UserError("--target, which compiles for GPUs that are not here, needs --dry-run")
    if config.model.train_frozen_statistics and not config.model.freeze:
        raise UserError("--train-frozen-statistics needs --freeze")
    if config.model.cache_features:
        _check_cacheable(config)
    if (size := data.image_size) is not None:
        train, test = data.train_transform.resized(size), data.eval_transform.resized(size)
        data = replace(data, train_transform=train, eval_transform=test, image_size=None)
    if sizes := data.progressive_sizes:
        if len(sizes) > schedule.epochs:
            raise UserError(
                f"--progressive-sizes has {len(sizes)} sizes for {schedule.epochs} epochs; each needs at least one"
            )
        if config.data.image_size not in (None, sizes[-1]):
            raise UserError(
                f"--image-size {config.data.image_size} is not the last of --progressive-sizes, {sizes[-1]}; make them "
                "the same"
            )
        data = replace(data, train_transform=data.train_transform.resized(sizes[-1]))
    if data.resize == "fast":
        if not isinstance(data.train_transform, TrainingTransform):
            kind = type(data.train_transform).__name__
            raise UserError(f"--resize fast is for random resized crops; this run's transform is a {kind}: remove it")
        require_fast_resize()
        data = replace(data, train_transform=replace(data.train_transform, resize="fast"), resize="exact")
    return replace(config, data=data)


def _check_cacheable(config: TrainConfig) -> None:
    """Raises UserError for settings with which the features of an image change from one epoch to the next."""
    model, loss, run = config.model, config.loss, config.run
    for conflict, present, way_out in (
        (
            "random training transforms",
            config.data.train_transform.is_random,
            "turn them off (padding 0, flip 0) or use a recipe without them, such as finetune",
        ),
        ("mixup, cutmix or random erasing", loss.mixup or loss.cutmix or loss.random_erasing, "turn them off"),
        ("--teacher, which needs the images", loss.teacher is not None, "remove it"),
        ("--tta", config.data.tta != "none", "remove it"),
        ("--progressive-sizes", config.data.progressive_sizes, "remove it"),
        ("--stochastic-depth", model.stochastic_depth, "remove it"),
        ("--train-frozen-statistics", model.train_frozen_statistics, "remove it"),
        ("--skip-corrupt", run.skip_corrupt, "repair or remove damaged images"),
        ("--distributed", run.distributed, "use one process"),
    ):
        if present:
            raise UserError(f"--cache-features cannot be used with {conflict}; {way_out}, or remove --cache-features")


@dataclass(frozen=True)
class DataFacts:
    """The properties of a data set that the model, the loss and the schedule depend on."""

    images: int
    channels: int
    num_classes: int
    class_weights: tuple[float, ...] | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setup:
    """The parts of a run, each built on first use.

    Attributes:
        config: resolved.
        mesh: all devices.
        facts: of the training set.
        loaded: a model with weights to start with, in place of the one that `config.model` describes.
    """

    config: TrainConfig
    mesh: Mesh
    facts: DataFacts
    loaded: ResNet | None = None

    def __post_init__(self):
        check_batch_size(self.config.batch_size, self.mesh.size, self.config.optimizer.accumulate)
        data = self.config.data
        if self.facts.num_classes < 2:
            raise UserError(f"{data.data} has only one class; training needs at least two")
        if self.loaded is not None:
            for what, own, its in (
                ("num_classes", self.loaded.num_classes, self.facts.num_classes),
                ("in_channels", self.loaded.in_channels, self.facts.channels),
            ):
                if own != its:
                    raise UserError(
                        f"the network has {what} {own}, but {data.data} needs {its}; create_model(..., {what}={its}) "
                        "makes one that fits"
                    )
        for name, values in (("mean", data.mean), ("std", data.std)):
            if len(values) not in (1, self.facts.channels):
                raise UserError(
                    f"--{name} has {len(values)} values, but the images of {data.data} have "
                    f"{self.facts.channels} channel(s); pass one value, or one for each channel"
                )

    @cached_property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.facts.images, self.config.batch_size, self.config.data.data)

    @cached_property
    def total_steps(self) -> int:
        return self.config.schedule.epochs * self.steps_per_epoch

    def build_model(self) -> ResNet:
        """The initial model: random, or with the configured weights and their stem."""
        model = self.config.model
        options: dict[str, Any] = {
            "num_classes": self.facts.num_classes,
            "in_channels": self.facts.channels,
            "rngs": nnx.Rngs(self.config.seed),
            **model_options(self.config, self.mesh),
            **model.arguments(),
        }
        if model.weights is None:
            options |= {"small_images": model.small_images, "zero_init_residual": model.zero_init_residual}
            return create_model(model.name, **options)
        loaded = load_pretrained(model.name, model.weights, prefix=model.prefix, **options)
        if model.small_images and not loaded.model.small_images:
            raise UserError(f"{model.weights} has the stem for large images; add --no-small-images")
        for note in self._notes(loaded):
            logger.warning(note)
        return loaded.model

    def _notes(self, loaded: Pretrained) -> Iterator[str]:
        """What was changed in the weights, and where this run is not as they were trained."""
        data, weights, own = self.config.data, self.config.model.weights, loaded.preprocessing
        yield from (note for note in loaded.notes if note != no_preprocessing(loaded.source))
        used = f"this run uses mean {data.mean}, std {data.std}"
        if not loaded.says_preprocessing:
            yield f"no preprocessing came with {weights}; {used}"
        elif (own.mean, own.std) != (data.mean, data.std):
            yield f"{weights} comes with mean {own.mean}, std {own.std}; {used}"
        pairs = enumerate(zip(loaded.class_names or (), self.facts.class_names, strict=False))
        if other := next(((number, *names) for number, names in pairs if names[0] != names[1]), None):
            number, theirs, ours = other
            yield (
                f"class {number} is {theirs!r} in {weights} and {ours!r} in {data.data}; the head, which has as many "
                "classes, is kept"
            )

    @cached_property
    def _drawn(self) -> Any:
        """The random initial model as (structure, variables): one program, traced once for both."""
        return jax.jit(lambda: nnx.split(self.build_model()))

    @cached_property
    def _model(self) -> ResNet:
        """The model's structure, and with weights its arrays too."""
        if self.loaded is not None:
            return self.loaded
        return nnx.merge(*jax.eval_shape(self._drawn)) if self.config.model.weights is None else self.build_model()

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

    # How a batch's "image" is processed; training on cached features overrides these five.

    @property
    def train_transform(self) -> ImageFunction:
        return self.config.data.train_transform

    @property
    def eval_transform(self) -> ImageFunction:
        data = self.config.data
        return Crops(data.eval_transform) if data.tta.endswith("crop") else data.eval_transform

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
    def teacher(self) -> Teacher | None:
        """Raises UserError if it does not fit the data."""
        return load_teacher(self.config, self.facts.num_classes, self.facts.channels)

    @cached_property
    def train_step(self) -> Wrapped | TaughtStep:
        config, teacher = self.config.optimizer, self.teacher
        step = make_train_step(
            self.network,
            self.optimizer,
            self.schedule,
            make_loss(self.config.loss, self.facts.class_weights),
            self.prepare,
            forward=self.logits,
            mesh=self.mesh,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            ema_every=config.ema_every,
            ema_start=self.config.schedule.warmup_epochs * self.steps_per_epoch,
            skip_nonfinite=self.config.run.on_nan == "skip",
            teacher=teacher,
        )
        return step if teacher is None else TaughtStep(step, teacher.arrays, self.replicated)

    @cached_property
    def evaluate(self) -> Callable:
        def forward(model: ResNet, images: jax.Array) -> jax.Array:
            return self.logits(model, self.normalize(images))

        views = averaged(forward, self.config.data.tta)
        return make_evaluate(self.network, self.facts.num_classes, views, mesh=self.mesh)

    def initial_arrays(self) -> Arrays:
        """The initial parameters and statistics."""
        if self.config.model.weights is None and self.loaded is None:
            return self.network.arrays(nnx.merge(*self._drawn()))
        return self.network.arrays(self._model)

    def doubt(self, images: jax.Array, count: int = IMAGES) -> str | None:
        """`weights.guard.doubt` of the first `count` of uint8 images (N, H, W, C) on the devices.

        None for a random network, and for features of images.
        """
        if (self.config.model.weights is None and self.loaded is None) or images.ndim != 4:
            return None
        data, some = self.config.data, images.addressable_data(0)[: min(count, IMAGES)]
        return doubt(self._model, normalize(some, data.mean, data.std))

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
        """An infinite stream of {"image", "label"} on the devices, starting at `start_step`."""
        config, per_epoch = self.config, self.steps_per_epoch
        plan = stages(config.data.progressive_sizes, config.schedule.epochs, start_step // per_epoch)
        for size, end in list(plan)[:-1]:
            transform = config.data.train_transform.resized(size)
            yield from islice(self._stream(source, transform, start_step), end * per_epoch - start_step)
            start_step = end * per_epoch
        yield from self._stream(source, self.train_transform, start_step)

    def _stream(self, source: Source, transform: ImageFunction, start_step: int) -> Iterator[dict[str, jax.Array]]:
        batches = training_batches(
            source,
            transform,
            seed=self.config.seed,
            start_step=start_step,
            repeats=self.config.data.repeats,
            **self._share,
        )
        without_index = ({name: batch[name] for name in ("image", "label")} for batch in batches)
        return prefetch_to_device(without_index, self.sharded)

    def evaluation_batches(self, source: Source) -> Iterator[dict[str, jax.Array]]:
        """{"image", "label", "mask"} on the devices, one pass over the source."""
        batches = evaluation_batches(source, self.eval_transform, **self._share)
        return prefetch_to_device(batches, self.sharded)


def model_options(config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The options of `create_model` that apply with and without weights."""
    model, options = config.model, {}
    if model.dtype == "bfloat16":
        options["dtype"] = jnp.bfloat16
    norm: dict[str, Any] = {"axis_name": AXIS} if model.sync_bn and mesh.size > 1 else {}
    if model.dtype == "bfloat16" and model.fold != "always":
        norm["fold"] = Fold(model.fold, known_card(mesh.devices.flat[0].device_kind))
    if norm and get_architecture(model.name).options.get("norm_layer", BatchNorm) is BatchNorm:
        options["norm_layer"] = partial(BatchNorm, **norm)
    if model.stochastic_depth:
        options["stochastic_depth"] = model.stochastic_depth
    return options


def facts_of(source: Source, weights: str | None = None) -> DataFacts:
    """The facts of a training set, with its class weights as `LossConfig.class_weights` sets them."""
    own = class_weights(weights, source)
    return DataFacts(len(source), source.channels, source.num_classes, own, source.class_names)
