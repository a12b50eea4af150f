"""The metrics of a run: fetched without stalling the devices, and written to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from resnet_flax.training.tensorboard import EventFile
from resnet_flax.training.workdir import Workdir


class Backlog:
    """Metrics that the devices have not computed yet, in order of their steps, at most `depth` steps back.

    The device always has work queued; the host waits only when it is `depth` steps ahead. A run waits for all of them
    before it stops, so `depth` is small.
    """

    def __init__(self, depth: int = 3):
        self.depth = depth
        self._queue: deque[tuple[int, Mapping[str, jax.Array]]] = deque()

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        self._queue.append((step, metrics))
        if len(self._queue) > self.depth:
            jax.block_until_ready(self._queue[-self.depth][1])

    def ready(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The metrics of the steps that have finished."""
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


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; an incomplete last line is ignored."""
    rows = []
    for line in workdir.metrics.read_text().splitlines() if workdir.metrics.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Journal:
    """metrics.jsonl, with one row per log step and per evaluation, and TensorBoard's event files.

    Args:
        workdir: where they go.
        step: rows of later steps, left by a killed run, are dropped.
    """

    def __init__(self, workdir: Workdir, step: int):
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        replacement = workdir.metrics.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replacement.replace(workdir.metrics)
        self._file = workdir.metrics.open("a")
        self._events = EventFile(workdir.tensorboard, step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One row of `kind` ("train", "evaluation"), null for NaN and infinity; TensorBoard has floats as KIND/NAME."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float) and name not in ("epoch", "seconds"):
                self._events.scalar(f"{kind}/{name}", step, value)
        if kind == "evaluation":  # not for every row: it waits for the disk
            self._events.flush()

    def close(self) -> None:
        """Closes both; on a full disk the last rows are lost, without another error."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()
