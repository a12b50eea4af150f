"""What a tracker is, and what it is told about the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parity.options import options_of
from resnet_flax.training.config import TrainConfig


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker sees it when it opens.

    Attributes:
        workdir: its directory, which exists.
        project: the recipe's name; runs of one project belong together.
        name: the workdir's name.
        settings: {option: value}, such as {"batch-size": 64}; what is no number or truth value is text.
        step: the steps already taken; 0 for a new run.
        id: what the tracker's own `id` was when this run was first tracked; None if it never was.
    """

    workdir: Path
    project: str
    name: str
    settings: Mapping[str, bool | int | float | str]
    step: int = 0
    id: str | None = None


def tracked_run(config: TrainConfig, workdir: Path, step: int) -> TrackedRun:
    """The run of a configuration in its directory, after `step` steps."""
    settings = {
        option.name.removeprefix("--"): option.value
        if isinstance(option.value, bool | int | float)
        else str(option.value)
        for option in options_of(config)
    }
    return TrackedRun(workdir, config.recipe, workdir.absolute().name, settings, step)


class Tracker(Protocol):
    """Takes a run's figures. Any exception that it raises ends the tracking, and never the run.

    Attributes:
        id: what it needs to continue this run after a restart; "" if nothing.
        where: what a person opens to see the run: an address, a directory, a command.
    """

    id: str
    where: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes finite figures of a step, by names such as "train/loss".

        Steps never fall, except that a resumed run repeats those after its last checkpoint, with the same figures.
        """

    def close(self, *, finished: bool) -> None:
        """Keeps what it has; `finished` is False for a run that was interrupted or has failed."""


Open = Callable[[TrackedRun], Tracker]
