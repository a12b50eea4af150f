"""What a run tells: metrics read back without holding up the devices, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax


class Backlog:
    """Metrics on their way back: step by step, in order, up to `depth` steps late.

    The device always has work queued; the host waits only when it is `depth` steps ahead. A stop has to wait for them
    all, so they are few.
    """

    def __init__(self, depth: int = 3):
        self.depth = depth
        self._queue: deque[tuple[int, Mapping[str, jax.Array]]] = deque()

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        self._queue.append((step, metrics))
        if len(self._queue) > self.depth:
            jax.block_until_ready(self._queue[-self.depth][1])

    def ready(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The metrics of the steps that are done."""
        while self._queue and self._done(self._queue[0][1]):
            yield self._pop()

    def all(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The metrics of every step so far; waits for them."""
        while self._queue:
            yield self._pop()

    @staticmethod
    def _done(metrics: Mapping[str, jax.Array]) -> bool:
        return all(value.is_ready() for value in metrics.values())  # ty: ignore[missing-attribute]

    def _pop(self) -> tuple[int, dict[str, float]]:
        step, metrics = self._queue.popleft()
        return step, {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Journal:
    """metrics.jsonl (one row per log step and per evaluation) and TensorBoard's event files.

    Args:
        workdir: where they go.
        step: rows of later steps, which a killed run has left behind, are dropped.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replacement.replace(path)
        self._file = path.open("a")
        # Not its SummaryWriter, whose thread dies of a full disk and leaves the run waiting for it.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        self._proto: Any = event_pb2
        if step:  # TensorBoard then hides what the killed run wrote from here on
            self._event(step, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One row of `kind` ("train", "evaluation"), null for what is not finite; numbers become scalars KIND/NAME."""
        from tensorboardX.summary import scalar

        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float) and name not in ("epoch", "seconds"):
                self._event(step, summary=scalar(f"{kind}/{name}", value))
        if kind == "evaluation":  # not for every row: it waits for the disk
            self._events.flush()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Closes both; a full disk, about which a row's own error has told, takes nothing more than the last events."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()
