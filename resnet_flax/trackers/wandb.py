"""Weights & Biases, configured as everywhere: `wandb login`, or WANDB_MODE=offline and `wandb sync` later."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping

from parity.errors import needs_extra
from resnet_flax.trackers.base import TrackedRun

with needs_extra("wandb", "--track wandb"):
    import wandb


class Wandb:
    """A run of W&B, whose files are in the workdir; a resumed run continues it by its id.

    W&B drops the rows of steps that it has already: a resumed run repeats those with the same figures.
    """

    def __init__(self, run: TrackedRun):
        self._run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else run.project,  # the variable counts where none is given
            name=run.name,
            id=run.id or uuid.uuid4().hex[:12],
            dir=run.workdir,
            config=dict(run.settings),
            resume="allow",
            allow_val_change=True,  # of settings that a resumed run may change
            reinit="create_new",  # leaves a run that the caller may have open
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id = self._run.id
        directory = self._run.settings.sync_dir
        self.where = f"wandb sync {directory}" if self._run.offline else str(self._run.url)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
