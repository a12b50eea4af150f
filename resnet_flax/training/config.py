"""All settings of a run, as one tree of frozen dataclasses; each field is a command-line option with its range."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parity.options import Fraction, NonNegative, NonNegativeInt, Pixels, PositiveInt, Range, Seed, option_group
from resnet_flax.data.fast_resize import Resize
from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.specs import FORMS
from resnet_flax.data.transforms import EvaluationTransform, SmallImageTransform, TrainingTransform
from resnet_flax.models.options import ModelOptions

_InItsGroup = tyro.conf.arg(name="")  # whose options appear with those around it


@option_group
@dataclass(frozen=True)
class ModelConfig(ModelOptions):
    """The network, and which parts of it are trained."""

    name: Annotated[str, tyro.conf.arg(name="model")] = "resnet50"
    """Architecture; `python -m resnet_flax models` lists them."""
    small_images: bool = False
    """Use a 3x3 stem without max-pool, for images of about 32 pixels."""
    zero_init_residual: bool = False
    """Initialise every block as the identity (scale of its last norm 0)."""
    stochastic_depth: Fraction = 0.0
    """Probability of skipping the last block's branch, rising linearly from 0 at the first (arXiv:1603.09382)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, statistics and loss stay float32."""
    sync_bn: bool = False
    """Synchronise batch statistics over all devices; by default each device uses its own."""
    fold: Literal["always", "auto", "never"] = "always"
    """Compute a batch norm from the input of the 1x1 convolution before it; in bfloat16 training only. auto skips
    the layers that the time model of the card predicts to get slower; on a card without a model it skips none."""
    weights: str | None = None
    """Initial weights: a torchvision name (IMAGENET1K_V1), hf-hub:OWNER/REPOSITORY, or a .safetensors or .pth file or
    Orbax directory. A head with another number of classes is replaced."""
    prefix: str | None = None
    """What the names of the network begin with in a file of weights that holds several, such as teacher."""
    freeze: tuple[str, ...] = ()
    """Freeze the parameters whose path (layer1.0.conv1.kernel) matches one of these regular expressions from its start;
    or all-but-head."""
    train_frozen_statistics: bool = False
    """Keep updating the running statistics of frozen norms."""
    cache_features: bool = False
    """Compute each image's features once and train the head on them. Needs everything but the head frozen and no random
    augmentation."""


@option_group
@dataclass(frozen=True)
class DataConfig:
    """The images and their preprocessing."""

    data: Annotated[str, tyro.conf.arg(help=f"The data set: {FORMS}.")] = "digits"
    data_dir: Path | None = None
    """The directory of TFDS data sets; ~/tensorflow_datasets by default."""
    source: Annotated[SourceOptions, _InItsGroup] = field(default_factory=SourceOptions)
    train_transform: tyro.conf.AvoidSubcommands[TrainingTransform | SmallImageTransform | EvaluationTransform] = field(
        default_factory=TrainingTransform
    )
    eval_transform: EvaluationTransform = field(default_factory=EvaluationTransform)
    tta: Literal["none", "flip", "five_crop", "ten_crop"] = "none"
    """Evaluate several views of each image and average their probabilities: its mirror image, or crops of
    --eval-transform.crop-size at the corners and the centre, with their mirror images in ten_crop."""
    image_size: Pixels | None = None
    """Shorthand: the side of training and evaluation images in pixels, set in both transforms. Where one resizes and
    then crops, its resize-size is scaled in proportion: 500 and 224 become 143 and 64."""
    progressive_sizes: tuple[Pixels, ...] = ()
    """The sides of the training images one after the other, each for an equal share of the epochs, such as 128 160 192;
    the last one is the final. Evaluation keeps its size."""
    resize: Resize = "exact"
    """Shorthand for the training transform's: exact gives torchvision's pixels; fast resizes in a third of the time,
    an eighth of the values a grey level off (docs/data.md), and needs the extra fast. Evaluation is always exact."""
    mean: Annotated[tuple[float, ...], Range()] = IMAGENET_MEAN
    """Per-channel mean, subtracted from images in [0, 1]; one value is used for all channels."""
    std: Annotated[tuple[float, ...], Range(gt=0)] = IMAGENET_STD
    """Per-channel standard deviation, applied after the mean."""
    repeats: PositiveInt = 1
    """Repeated augmentation: how many times an epoch shows each of its images."""


@option_group
@dataclass(frozen=True)
class LossConfig:
    """The loss, and the augmentation that runs on the device."""

    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Binary cross-entropy takes each class on its own, as in arXiv:2110.00476."""
    class_weights: str | None = None
    """Weights of the classes in the loss: balanced (inverse to the number of training images), or a file with a number
    on each line in the order of the classes, or a .json list or {class: number}."""
    label_smoothing: Fraction = 0.0
    """The part of each target that is spread evenly over all classes (arXiv:1512.00567)."""
    bce_threshold: Annotated[float | None, Range()] = None
    """For binary cross-entropy: targets above it count as 1, the others as 0."""
    mixup: NonNegative = 0.0
    """Alpha of mixup (arXiv:1710.09412); 0 turns it off."""
    cutmix: NonNegative = 0.0
    """Alpha of cutmix (arXiv:1905.04899); 0 turns it off. With mixup too, each batch uses one of the two at random."""
    random_erasing: Fraction = 0.0
    """Probability of erasing a rectangle of an image (arXiv:1708.04896)."""
    teacher: str | None = None
    """Also learn the outputs of a trained network (arXiv:1503.02531): a file, hf-hub:OWNER/REPOSITORY, or with
    --teacher-model torchvision's name. It sees the same images and must know the same classes."""
    teacher_model: str | None = None
    """The teacher's architecture; needed where it is given by torchvision's name."""
    teacher_temperature: Annotated[float, Range(gt=0)] = 4.0
    """Divides both networks' logits in the loss against the teacher, which is multiplied by its square."""
    teacher_weight: Fraction = 0.5
    """The part of the loss against the teacher; that of the labels has the rest."""


@option_group
@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser."""

    optimizer: Literal[
        "sgd",
        "momentum",
        "nesterov",
        "adam",
        "adamw",
        "lion",
        "muon",
        "adan",
        "schedule_free_sgd",
        "schedule_free_adamw",
        "lamb",
        "lars",
    ] = "momentum"
    """The rule of the updates; momentum is PyTorch's SGD with momentum."""
    learning_rate: Annotated[NonNegative, tyro.conf.arg(aliases=("--lr",))] = 0.1
    """For the given batch size: it is never rescaled automatically."""
    momentum: Fraction = 0.9
    """For momentum, nesterov, lars and muon (usually 0.95 there); for schedule_free_sgd, the weight of the average."""
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.999)
    """For Adam, AdamW, LAMB, schedule_free_adamw and Lion (0.9 0.99 in its paper); for Muon, where it uses AdamW."""
    epsilon: NonNegative = 1e-8
    """For Adam, AdamW, LAMB, Adan and schedule_free_adamw; for Muon, where it uses AdamW."""
    trust_coefficient: NonNegative = 0.001
    """For LARS."""
    weight_decay: Annotated[NonNegative, tyro.conf.arg(aliases=("--wd",))] = 0.0
    """Added to the gradient, or for AdamW, LAMB, Lion, Muon, Adan and schedule_free_adamw to the update (decoupled)."""
    no_decay: tuple[Literal["norm", "bias"], ...] = ()
    """Kinds of parameters without weight decay."""
    learning_rate_multipliers: Annotated[tuple[tuple[str, float], ...], Range(ge=0)] = ()
    """Pairs of a regular expression over parameter paths and a factor; the last match wins."""
    clip_norm: Annotated[float | None, Range(ge=0)] = None
    """Clip gradients to this global norm."""
    accumulate: PositiveInt = 1
    """Split each device's batch into this many micro-batches, run one after the other."""
    ema_decay: Annotated[float | None, Range(ge=0, le=1)] = None
    """Keep an exponential moving average of parameters and statistics; during the warm-up it is a copy."""
    ema_every: PositiveInt = 1
    """Steps between updates of the moving average."""


@option_group
@dataclass(frozen=True)
class ScheduleConfig:
    """The number of epochs, the learning rate over them, and how the best of them is chosen."""

    epochs: PositiveInt = 90
    """Passes over the training images."""
    schedule: Literal["constant", "step", "cosine", "poly"] = "constant"
    """How the learning rate falls after the warm-up."""
    schedule_unit: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes after every step or after every epoch."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of linear warm-up, before the schedule."""
    warmup_start: NonNegative = 0.0
    """The fraction of the learning rate at which the warm-up starts."""
    end_factor: NonNegative = 0.0
    """The fraction of the learning rate at which cosine and poly end."""
    step_epochs: PositiveInt = 30
    """Step: epochs between two drops."""
    step_factor: NonNegative = 0.1
    """Step: the factor of each drop."""
    poly_power: NonNegative = 2.0
    """Poly: the exponent; 1 is linear decay."""
    best_by: Literal["loss", "accuracy", "top5", "macro-f1"] = "accuracy"
    """The figure of the evaluations by which best.safetensors is chosen; cross-entropy for loss."""


@option_group
@dataclass(frozen=True)
class RunConfig:
    """Where and how to run."""

    workdir: Path | None = None
    """Directory for checkpoints, metrics and plots; a new runs/RECIPE-N by default."""
    resume: bool = False
    """Resume from the last complete checkpoint of the workdir; of the most recent run by default."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes GPUs if JAX finds any."""
    distributed: bool = False
    """Join the other processes of this job; SLURM, Open MPI and Kubernetes are detected (docs/training.md)."""
    deterministic: bool = False
    """Use GPU kernels that give the same bits in every run; slower."""
    workers: Annotated[int, Range(ge=0, le=1024), tyro.conf.arg(aliases=("-j",))] = 0
    """Processes that read and transform images; 0 uses threads."""
    log_every: PositiveInt = 50
    """Steps between rows of metrics.jsonl."""
    track: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Also send these rows to trackio, wandb or mlflow, each of the extra of its name, or to a tracker that a package
    registers as resnet_flax.trackers; may be repeated. TensorBoard's files are always written."""
    checkpoint_every: Annotated[int | None, Range(ge=1)] = None
    """Steps between checkpoints; one epoch by default."""
    keep: PositiveInt = 2
    """Number of checkpoints to keep."""
    on_nan: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not finite: stop the run, or skip that update."""
    patience: Annotated[int | None, Range(ge=1)] = None
    """Stop after this many epochs in which --best-by has not improved."""
    skip_corrupt: NonNegativeInt = 0
    """Number of unreadable images to skip before stopping."""
    profile: bool = False
    """Write a trace of ten steps for xprof."""
    evaluate: bool = False
    """Evaluate --weights on --split instead of training."""
    split: str = "val"
    """The split that --evaluate uses: train, val, or test; without a val it is the test split."""
    real_labels: Path | None = None
    """With --evaluate on ImageNet's validation set: ImageNet-ReaL's real.json, for the accuracy by its labels."""
    synsets: Path | None = None
    """With --evaluate on folders named by wnid: a file with the wnids of the network's classes in their order; timm's
    for ImageNet by default."""
    dry_run: bool = False
    """Print the model's size and cost and compile one step, without training."""
    target: str | None = None
    """With --dry-run, compile for GPUs that this machine does not have and predict the step's time: h100, h200, a100,
    b200, l4 or rtx4090, or h100:HOSTSxGPUS. Needs the extra cuda13."""


@option_group
@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    recipe: tyro.conf.Suppress[str] = "custom"
    batch_size: Annotated[PositiveInt, tyro.conf.arg(aliases=("-b",))] = 256
    """Images per step, over all devices."""
    seed: Seed = 0
    """Seeds initialization, shuffling and augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
