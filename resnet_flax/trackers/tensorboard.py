"""TensorBoard's event files.

The one module that uses tensorboardX. Its `SummaryWriter` writes in a thread, which dies of a full disk and leaves the
run waiting for it, so this uses the `EventsWriter` behind it, which is not part of its documented interface. Read from
version 2.6.5; `test_tensorboard_interface` in tests/resnet_flax/trackers/test_trackers.py fails first if it changes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from parity.errors import needs_extra
from resnet_flax.trackers.base import TrackedRun

with needs_extra("train", "TensorBoard's event files"):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar

_proto: Any = event_pb2


class TensorBoard:
    """One event file of a run, in its directory `tensorboard`; each process of the run has its own.

    TensorBoard hides what earlier files have after the step at which a run is resumed.
    """

    id = ""

    def __init__(self, run: TrackedRun):
        directory = run.workdir / "tensorboard"
        directory.mkdir(exist_ok=True)
        self.where = f"tensorboard --logdir {directory}"
        self._writer = EventsWriter(str(directory / "events"))
        if run.step:  # what is hidden begins with the step of this record
            self._write(run.step + 1, session_log=_proto.SessionLog(status=_proto.SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        if any(name.startswith("evaluation") for name in values):  # not for every row: it waits for the disk
            self._writer.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(_proto.Event(wall_time=time.time(), step=step, **content))

    def close(self, *, finished: bool) -> None:
        """Closes the file; on a full disk the last events are lost, without an error."""
        with contextlib.suppress(OSError):
            self._writer.close()
