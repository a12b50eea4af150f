"""The part of a run's progress that a checkpoint has besides the state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a checkpoint contains besides the state, so that the metrics of a resumed run continue too.

    Attributes:
        best: {"model" or "ema": the accuracy of the best weights so far}.
        scores: {"model" or "ema": their `--best-by`, to be maximised}.
        waited: evaluations since the last of these improved.
        loss, accuracy, steps: sums over the current epoch.
        interval_loss, interval_accuracy, interval_steps: sums since the last row of metrics.jsonl.
        seconds: of training, without what was lost when the run was killed.
    """

    best: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    steps: int = 0
    interval_loss: float = 0.0
    interval_accuracy: float = 0.0
    interval_steps: int = 0
    seconds: float = 0.0

    @property
    def train(self) -> dict[str, float]:
        """Means over the current epoch, NaN if all its updates were skipped."""
        steps = self.steps or math.nan
        return {"train_loss": self.loss / steps, "train_accuracy": self.accuracy / steps}

    @property
    def interval(self) -> dict[str, float]:
        """Means since the last row, NaN if all updates were skipped."""
        steps = self.interval_steps or math.nan
        return {"loss": self.interval_loss / steps, "accuracy": self.interval_accuracy / steps}

    def add(self, loss: float, accuracy: float) -> None:
        """Counts the metrics of one step."""
        self.loss += loss
        self.accuracy += accuracy
        self.steps += 1
        self.interval_loss += loss
        self.interval_accuracy += accuracy
        self.interval_steps += 1
