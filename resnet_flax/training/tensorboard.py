"""TensorBoard's event files.

The one module that uses tensorboardX. Its `SummaryWriter` writes in a thread, which dies of a full disk and leaves the
run waiting for it, so this uses the `EventsWriter` behind it, which is not part of its documented interface. Read from
version 2.6.5; `test_tensorboard_interface` in tests/resnet_flax/training/test_metrics.py fails first if it changes.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any


class EventFile:
    """One event file of a run.

    Args:
        directory: where it goes; created if missing.
        step: TensorBoard hides what earlier files of the directory have after this step; 0 hides nothing.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._proto: Any = event_pb2
        if step:
            self._write(step, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def scalar(self, tag: str, step: int, value: float) -> None:
        from tensorboardX.summary import scalar

        self._write(step, summary=scalar(tag, value))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        """Waits for the disk; raises OSError if it is full."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; on a full disk the last events are lost, without an error."""
        with contextlib.suppress(OSError):
            self._writer.close()
