"""All recipes: their settings, where these come from, and the results to expect."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from resnet_flax.data.transforms import EvaluationTransform, SmallImageTransform, TrainingTransform
from resnet_flax.errors import UserError
from resnet_flax.training.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        config: the settings; every field can be overridden on the command line.
        source: where they were published.
        result: the accuracy to expect.
        scaling: how the learning rate depends on the batch size.
        data: (training images, channels, classes) of the data set, for a dry run without it.
        image_size: (height, width) of its images, if all have the same.
    """

    config: TrainConfig
    source: str
    result: str
    scaling: str
    data: tuple[int, int, int]
    image_size: tuple[int, int] | None = None


LINEAR = "learning rate proportional to the batch size (arXiv:1706.02677)"
UNSCALED = "none is known; its learning rate is for its own batch size"

IMAGENET = (1_281_167, 3, 1000)
FASHION_MNIST = (60_000, 1, 10)

_FASHION_MNIST = "idx:/usr/share/datasets/fashion-mnist"
_IMAGENET = "tfds:imagenet2012"


def _unaugmented(data: str, size: int) -> DataConfig:
    """Images resized to `size` and scaled to [0, 1], without normalisation or augmentation."""
    return DataConfig(
        data=data,
        train_transform=SmallImageTransform(size, padding=0, flip=0.0),
        eval_transform=EvaluationTransform(size, size),
        mean=(0.0,),
        std=(1.0,),
    )


_RECIPES = (
    Recipe(
        TrainConfig(
            recipe="digits",
            batch_size=64,
            model=ModelConfig("resnet18", zero_init_residual=True),
            data=DataConfig(
                data="digits",
                train_transform=SmallImageTransform(16, padding=2, flip=0.0),
                eval_transform=EvaluationTransform(16, 16),
                mean=(0.5,),
                std=(0.5,),
            ),
            optimizer=OptimizerConfig("adamw", learning_rate=2e-3, weight_decay=0.01, no_decay=("norm", "bias")),
            schedule=ScheduleConfig(epochs=6, schedule="cosine"),
            run=RunConfig(log_every=11),
        ),
        source="this project: scikit-learn's 8x8 digits at 16x16, with a fifth of them as test set",
        result="at least 97% in two minutes on 2 CPU cores",
        scaling=UNSCALED,
        data=(1_438, 1, 10),
    ),
    Recipe(
        TrainConfig(
            recipe="fashion_mnist_adam",
            batch_size=256,
            model=ModelConfig("residual18"),
            data=_unaugmented(_FASHION_MNIST, 96),
            optimizer=OptimizerConfig("adam", learning_rate=1e-3),
            schedule=ScheduleConfig(epochs=5),
            run=RunConfig(log_every=20),
        ),
        source="a PyTorch exercise on the residual network of Dive into Deep Learning, section 8.6",
        result="91% in the best of 5 epochs (published: 84.9, 90.4, 88.5, 91.7, 91.4%)",
        scaling=UNSCALED,
        data=FASHION_MNIST,
    ),
    Recipe(
        TrainConfig(
            recipe="fashion_mnist_sgd",
            batch_size=256,
            model=ModelConfig("residual18_xavier"),
            data=_unaugmented(_FASHION_MNIST, 224),
            optimizer=OptimizerConfig("sgd", learning_rate=0.05),
            schedule=ScheduleConfig(epochs=10),
            run=RunConfig(log_every=20),
        ),
        source="a PyTorch exercise on the residual network of Dive into Deep Learning, section 8.6",
        result="86% after 10 epochs (published: 54.6% after the first, 86.2% after the tenth)",
        scaling=UNSCALED,
        data=FASHION_MNIST,
    ),
    Recipe(
        TrainConfig(
            recipe="cifar10",
            batch_size=128,
            model=ModelConfig("resnet18", small_images=True),
            data=DataConfig(
                data="tfds:cifar10",
                train_transform=SmallImageTransform(padding=4, flip=0.5),
                eval_transform=EvaluationTransform(None, None),
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.2470, 0.2435, 0.2616),
            ),
            optimizer=OptimizerConfig("momentum", learning_rate=0.1, weight_decay=5e-4),
            schedule=ScheduleConfig(epochs=200, schedule="cosine", schedule_unit="epoch"),
        ),
        source="the settings popularised by kuangliu/pytorch-cifar",
        result="about 95%",
        scaling=LINEAR,
        data=(50_000, 3, 10),
        image_size=(32, 32),
    ),
    Recipe(
        TrainConfig(
            recipe="finetune",
            batch_size=15,
            model=ModelConfig("resnet18", weights="IMAGENET1K_V1", freeze=("all-but-head",)),
            data=DataConfig(
                data="folder:images",
                train_transform=EvaluationTransform(500, 224),
                eval_transform=EvaluationTransform(500, 224),
            ),
            optimizer=OptimizerConfig("adam", learning_rate=1e-3),
            schedule=ScheduleConfig(epochs=10),
            run=RunConfig(log_every=10),
        ),
        source="a PyTorch exercise: torchvision's ResNet-18, frozen, with a new head; use --data folder:DIR",
        result="depends on the images",
        scaling=UNSCALED,
        data=(1_000, 3, 4),
    ),
    Recipe(
        TrainConfig(
            recipe="imagenet_v1",
            batch_size=256,
            data=DataConfig(
                data=_IMAGENET, train_transform=TrainingTransform(), eval_transform=EvaluationTransform(256, 224)
            ),
            optimizer=OptimizerConfig("momentum", learning_rate=0.1, weight_decay=1e-4),
            schedule=ScheduleConfig(epochs=90, schedule="step", schedule_unit="epoch"),
        ),
        source="torchvision's classification reference, 8 GPUs of 32 images: the IMAGENET1K_V1 weights",
        result="76.13%",
        scaling=LINEAR,
        data=IMAGENET,
    ),
    Recipe(
        TrainConfig(
            recipe="imagenet_v2",
            batch_size=1024,
            data=DataConfig(
                data=_IMAGENET,
                train_transform=TrainingTransform(176, augment="trivial_augment_wide"),
                eval_transform=EvaluationTransform(232, 224),
                repeats=4,
            ),
            loss=LossConfig(label_smoothing=0.1, mixup=0.2, cutmix=1.0, random_erasing=0.1),
            # torchvision's 0.99998 is not the decay that it uses: it multiplies 1 - decay by
            # GPUs * batch * steps / epochs = 8 * 128 * 32 / 600.
            optimizer=OptimizerConfig(
                "momentum",
                learning_rate=0.5,
                weight_decay=2e-5,
                no_decay=("norm",),
                ema_decay=1 - 2e-5 * 8 * 128 * 32 / 600,
                ema_every=32,
            ),
            schedule=ScheduleConfig(
                epochs=600, schedule="cosine", schedule_unit="epoch", warmup_epochs=5, warmup_start=0.01
            ),
        ),
        source="torchvision's recipe of 2021, 8 GPUs of 128 images: the IMAGENET1K_V2 weights",
        result="80.86% (the moving average)",
        scaling=LINEAR,
        data=IMAGENET,
    ),
    Recipe(
        TrainConfig(
            recipe="imagenet_a3",
            batch_size=2048,
            data=DataConfig(
                data=_IMAGENET,
                # timm's magnitude 6 of 10 is 18 of torchvision's 30; its magnitude noise of 0.5 has no equivalent.
                train_transform=TrainingTransform(
                    160, augment="rand_augment", rand_augment_magnitude=18, interpolation="bicubic"
                ),
                eval_transform=EvaluationTransform(235, 224, "bicubic"),
            ),
            loss=LossConfig(loss="binary_cross_entropy", bce_threshold=0.2, mixup=0.1, cutmix=1.0),
            optimizer=OptimizerConfig(
                "lamb", learning_rate=8e-3, weight_decay=0.02, no_decay=("norm", "bias"), epsilon=1e-6, clip_norm=1.0
            ),
            schedule=ScheduleConfig(epochs=100, schedule="cosine", warmup_epochs=5),
        ),
        source="ResNet strikes back, procedure A3 (arXiv:2110.00476), with torchvision's RandAugment for timm's",
        result="78.1%",
        scaling="learning rate proportional to the square root of the batch size (arXiv:1904.00962)",
        data=IMAGENET,
    ),
    Recipe(
        TrainConfig(
            recipe="imagenet_flax",
            batch_size=1024,
            model=ModelConfig("resnet50", zero_init_residual=True),
            data=DataConfig(
                data=_IMAGENET,
                train_transform=TrainingTransform(interpolation="bicubic"),
                eval_transform=EvaluationTransform(256, 224, "bicubic"),
            ),
            optimizer=OptimizerConfig("nesterov", learning_rate=0.4, weight_decay=1e-4, no_decay=("norm", "bias")),
            schedule=ScheduleConfig(epochs=100, schedule="cosine", warmup_epochs=5),
        ),
        source="Flax's ImageNet example: learning rate 0.1 for every 256 images of the batch",
        result="76.3 to 76.7%",
        scaling=LINEAR,
        data=IMAGENET,
    ),
    Recipe(
        TrainConfig(
            recipe="imagenet_large_batch",
            batch_size=32768,
            data=DataConfig(
                data=_IMAGENET, train_transform=TrainingTransform(), eval_transform=EvaluationTransform(256, 224)
            ),
            loss=LossConfig(label_smoothing=0.1),
            optimizer=OptimizerConfig("lars", learning_rate=32.0, weight_decay=1e-4, no_decay=("norm", "bias")),
            schedule=ScheduleConfig(epochs=90, schedule="poly", warmup_epochs=14),
        ),
        source="TensorFlow's ResNet for TPUs with LARS (arXiv:1708.03888)",
        result="76.3%",
        scaling="its own table: 5 warm-up epochs and rate 5 for batches below 8,192, 10 below 16,384, 25 below 32,768",
        data=IMAGENET,
    ),
)

RECIPES: dict[str, Recipe] = {recipe.config.recipe: recipe for recipe in _RECIPES}
DEFAULT = "digits"
"""The recipe where none is named."""


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: if there is none; the message has the nearest names.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise UserError(f"no recipe named {name!r}; did you mean {', '.join(near)}? (--list shows all)")
    return RECIPES[name]


def scaling_note(config: TrainConfig) -> str | None:
    """A reminder of the recipe's scaling rule, if the batch size was changed and the learning rate was not."""
    recipe = RECIPES[config.recipe]
    preset = recipe.config
    if config.batch_size == preset.batch_size or config.optimizer.learning_rate != preset.optimizer.learning_rate:
        return None
    rate = preset.optimizer.learning_rate * config.batch_size / preset.batch_size
    option = f": --learning-rate {rate:.3g}" if recipe.scaling == LINEAR else ""
    return (
        f"note: the batch size is {config.batch_size:,}, the recipe's {preset.batch_size:,}, and the learning rate is "
        f"unchanged; the recipe's rule: {recipe.scaling}{option}"
    )
