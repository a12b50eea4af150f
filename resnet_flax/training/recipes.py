"""Every recipe, in one place: its settings, where they come from, and what to expect of them."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_flax.data.transforms import EvaluationTransform, SmallImageTransform
from resnet_flax.training.config import (
    DataConfig,
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
        result: what they are expected to reach.
        scaling: how learning rate and batch size go together.
    """

    config: TrainConfig
    source: str
    result: str
    scaling: str


LINEAR = "learning rate proportional to the batch size (arXiv:1706.02677)"
UNSCALED = "published for this batch size only"

_DIGITS = DataConfig(
    data="digits",
    train_transform=SmallImageTransform(16, padding=2, flip=0.0),
    eval_transform=EvaluationTransform(16, 16),
    mean=(0.5,),
    std=(0.5,),
)

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        TrainConfig(
            recipe="digits",
            batch_size=64,
            model=ModelConfig("resnet18", zero_init_residual=True),
            data=_DIGITS,
            optimizer=OptimizerConfig("adamw", learning_rate=2e-3, weight_decay=0.01, no_decay=("norm", "bias")),
            schedule=ScheduleConfig(epochs=6, schedule="cosine"),
            run=RunConfig(log_every=11),
        ),
        source="this project's own: scikit-learn's 8x8 digits, a fifth of them for testing",
        result="97 % or more within two minutes on 2 CPU cores",
        scaling=UNSCALED,
    ),
}
