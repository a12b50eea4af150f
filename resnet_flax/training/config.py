"""Everything a run is made of, as one tree of frozen dataclasses; each field is a command-line option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
from resnet_flax.data.transforms import EvaluationTransform, SmallImageTransform, TrainingTransform

# Options of these groups carry no prefix: --learning-rate, not --optimizer.learning-rate.
_Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class ModelConfig:
    """The network, and what of it is trained."""

    name: Annotated[str, tyro.conf.arg(name="model")] = "resnet50"
    """Architecture; `python -m resnet_flax models` lists them."""
    small_images: bool = False
    """A 3x3 stem without max-pool, for images of about 32 pixels."""
    zero_init_residual: bool = False
    """Start every block as the identity (last norm's scale 0)."""
    stochastic_depth: float = 0.0
    """Chance to skip the last block's branch, rising linearly from 0 at the first (arXiv:1603.09382)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, statistics and loss stay float32."""
    sync_bn: bool = False
    """Batch statistics over all devices instead of each device's own."""
    weights: str | None = None
    """Start from these: torchvision's name (IMAGENET1K_V1), hf-hub:OWNER/REPOSITORY, or a .safetensors or .pth file or
    Orbax directory. Another head is replaced."""
    freeze: tuple[str, ...] = ()
    """Regular expressions over parameter paths (layer1.0.conv1.kernel), or all-but-head."""
    train_frozen_statistics: bool = False
    """Let frozen norms go on updating their running statistics."""
    cache_features: bool = False
    """Compute each image's features once and train on them: where all but the head is frozen and nothing random."""


@dataclass(frozen=True)
class DataConfig:
    """The images and how they are fed."""

    data: str = "digits"
    """digits, idx:DIR, folder:DIR, tfds:NAME or synthetic:HxWxC:N."""
    data_dir: Path | None = None
    """Where TFDS data sets lie."""
    train_transform: tyro.conf.AvoidSubcommands[TrainingTransform | SmallImageTransform | EvaluationTransform] = field(
        default_factory=TrainingTransform
    )
    eval_transform: EvaluationTransform = field(default_factory=EvaluationTransform)
    image_size: int | None = None
    """Shorthand: the side of training and evaluation images, in both transforms. Where one is cut out of a larger
    image, resize-size changes in proportion: 500 and 224 become 143 and 64."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from images in [0, 1], one per channel or one for all."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divides them then."""
    repeats: int = 1
    """Repeated augmentation: how often an epoch shows each of its images."""


@dataclass(frozen=True)
class LossConfig:
    """The loss, and the augmentation that happens on the device."""

    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    label_smoothing: float = 0.0
    bce_threshold: float | None = None
    """For binary cross-entropy: targets above it count as 1, the others as 0."""
    mixup: float = 0.0
    """Alpha of mixup (arXiv:1710.09412); 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix (arXiv:1905.04899); with mixup too, each batch draws one of the two."""
    random_erasing: float = 0.0
    """Chance to erase a rectangle of an image (arXiv:1708.04896)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser."""

    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "lamb", "lars"] = "momentum"
    learning_rate: float = 0.1
    """At the recipe's own batch size: it is never rescaled behind your back."""
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    trust_coefficient: float = 0.001
    """LARS only."""
    weight_decay: float = 0.0
    decoupled_decay: bool | None = None
    """Multiply decay by the learning rate alone; by default only AdamW and LAMB do."""
    no_decay: tuple[Literal["norm", "bias"], ...] = ()
    """Kinds of parameters that do not decay."""
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression over parameter paths and a factor; the last match wins."""
    clip_norm: float | None = None
    """Clip gradients to this global norm."""
    accumulate: int = 1
    """Split each device's batch into this many micro-batches, one after the other."""
    ema_decay: float | None = None
    """Keep a moving average of parameters and statistics; during the warm-up it is a copy."""
    ema_every: int = 1
    """Steps between updates of the average."""

    @property
    def decay_is_decoupled(self) -> bool:
        return self.optimizer in ("adamw", "lamb") if self.decoupled_decay is None else self.decoupled_decay


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and the learning rate along the way."""

    epochs: int = 90
    schedule: Literal["constant", "step", "cosine", "linear", "poly"] = "constant"
    schedule_unit: Literal["step", "epoch"] = "step"
    """How often the learning rate changes."""
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    """The warm-up begins at this fraction of the learning rate."""
    end_factor: float = 0.0
    """Cosine, linear and poly end at this fraction of it."""
    step_epochs: int = 30
    step_factor: float = 0.1
    poly_power: float = 2.0


@dataclass(frozen=True)
class RunConfig:
    """Where and how a run is carried out."""

    workdir: Path | None = None
    """Checkpoints, metrics and plots go here; by default a new runs/RECIPE-N."""
    resume: bool = False
    """Go on from the last complete checkpoint of the workdir; by default that of the run begun last."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    distributed: bool = False
    """Join the other processes of this job: SLURM, Open MPI and Kubernetes are detected (docs/training.md)."""
    deterministic: bool = False
    """Ask XLA for GPU kernels that give the same bits every time; slower."""
    workers: int = 0
    """Processes that read and transform images; 0 uses threads."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default one after each epoch."""
    keep: int = 2
    """How many checkpoints to keep."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop the run, or leave that update out."""
    skip_corrupt: int = 0
    """How many unreadable images to skip before giving up."""
    profile: bool = False
    """Write a trace of ten steps for xprof."""
    evaluate: bool = False
    """Evaluate --weights on the test split instead of training."""
    dry_run: bool = False
    """Print the model's size and cost and compile one step, without training."""
    target: str | None = None
    """With --dry-run, compile for GPUs that are not here: h100, or h100:HOSTSxGPUS. Needs the extra cuda13."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    recipe: tyro.conf.Suppress[str] = "custom"
    batch_size: int = 256
    """Images a step, over all devices."""
    seed: int = 0
    model: Annotated[ModelConfig, _Flat] = field(default_factory=ModelConfig)
    data: Annotated[DataConfig, _Flat] = field(default_factory=DataConfig)
    loss: Annotated[LossConfig, _Flat] = field(default_factory=LossConfig)
    optimizer: Annotated[OptimizerConfig, _Flat] = field(default_factory=OptimizerConfig)
    schedule: Annotated[ScheduleConfig, _Flat] = field(default_factory=ScheduleConfig)
    run: Annotated[RunConfig, _Flat] = field(default_factory=RunConfig)
