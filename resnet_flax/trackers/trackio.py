"""Trackio, whose files are where TRACKIO_DIR points, and otherwise in the cache of Hugging Face."""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Mapping

from parity.errors import needs_extra
from resnet_flax.trackers.base import TrackedRun

with needs_extra("trackio", "--track trackio"):
    import trackio


class Trackio:
    """A run of Trackio, which is known by its name there: ours has a random end, so that no two are taken for one."""

    def __init__(self, run: TrackedRun):
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.where = f"trackio show --project {run.project}"
        with contextlib.redirect_stdout(io.StringIO()):  # `where` has what it prints
            self._run = trackio.init(run.project, name=self.id, config=dict(run.settings), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # and not the run's own method, after which the process would finish it once more
