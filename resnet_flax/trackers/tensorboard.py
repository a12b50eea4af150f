"""TensorBoard's event files.

The one module that uses TensorBoard's own classes for its files, as `torch.utils.tensorboard` does: they are not
documented. Read from version 2.21; `test_tensorboard_interface` in tests/resnet_flax/trackers/test_trackers.py fails
first if they change. A `SummaryWriter` (tensorboardX's, PyTorch's) writes in a thread, which dies of a full disk and
leaves the run waiting for it, and tensorboardX imports PyTorch where there is one, which takes longer than JAX.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from parity.errors import needs_extra
from resnet_flax.trackers.base import TrackedRun

with needs_extra("train", "TensorBoard's event files"):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

_event: Any = event_pb2
_summary: Any = summary_pb2


class TensorBoard:
    """One event file of a run, in its directory `tensorboard`; each process of the run has its own.

    TensorBoard hides what earlier files have after the step at which a run is resumed.
    """

    id = ""

    def __init__(self, run: TrackedRun):
        directory = run.workdir / "tensorboard"
        directory.mkdir(exist_ok=True)
        self.where = f"tensorboard --logdir {directory}"
        file = directory / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._records = RecordWriter(file.open("ab"))
        self._write(0, file_version="brain.Event:2")
        if run.step:  # what is hidden begins with the step of this record
            self._write(run.step + 1, session_log=_event.SessionLog(status=_event.SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            scalar = _summary.Summary.Value(tag=name, simple_value=value)
            self._write(step, summary=_summary.Summary(value=[scalar]))
        if any(name.startswith("evaluation") for name in values):  # not for every row: it waits for the disk
            self._records.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._records.write(_event.Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def close(self, *, finished: bool) -> None:
        """Closes the file; on a full disk the last events are lost, without an error."""
        with contextlib.suppress(OSError):
            self._records.close()
