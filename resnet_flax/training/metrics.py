"""What a run tells: metrics read back without holding up the devices, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
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
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replacement.replace(path)
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One row of `kind` ("train", "evaluation"), null for what is not finite; numbers become scalars KIND/NAME."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float) and name not in ("epoch", "seconds"):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()
