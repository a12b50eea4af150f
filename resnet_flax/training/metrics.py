"""The metrics of a run: fetched without stalling the devices, and written to metrics.jsonl and the trackers."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax

from parity.conversion.files import open_regular, write_text
from parity.options import LARGEST_FLOAT
from resnet_flax.errors import UserError
from resnet_flax.text import finite, to_json
from resnet_flax.trackers.registry import Trackers
from resnet_flax.training.workdir import Workdir

logger = logging.getLogger("resnet_flax.training")


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


NUMBERS = {"train": ("epoch",), "evaluation": ("epoch", "accuracy", "seconds")}
"""{kind of row: the numbers that are read from it again}."""
PERHAPS = {"train": ("loss", "accuracy", "learning_rate"), "evaluation": ("loss", "train_loss")}
"""{kind of row: those that are null where they were not finite}."""
TEXTS = ("kind", "weights", "split")
"""What is no number."""


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, without lines that are damaged or incomplete."""
    return _parse(workdir)[0]


def _parse(workdir: Workdir) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The rows, and the damaged lines; a last line that was cut off when the run was killed is in neither."""
    rows, damaged = [], []
    try:
        with open_regular(workdir.metrics) as file:
            content = file.read()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"{workdir.metrics} cannot be read: {error.strerror}") from error
    for line in content.splitlines(keepends=True):
        try:
            row = finite(json.loads(line))
        except (ValueError, RecursionError):
            row = None
        if _is_row(row):
            rows.append(row)
        elif line.strip() and (line.endswith(b"\n") or not line.startswith(b'{"kind"')):
            damaged.append(line.rstrip(b"\n"))
    return rows, damaged


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or type(row.get("step")) is not int:
        return False
    kind = row["kind"]
    if kind not in NUMBERS:  # of another version
        return True
    return (
        all(value is None or _is_number(value) for name, value in row.items() if name not in TEXTS)
        and all(row.get(name) is not None for name in NUMBERS[kind])
        and all(name in row for name in PERHAPS[kind])
        and (kind != "evaluation" or isinstance(row.get("weights"), str))
        and isinstance(row.get("split", ""), str)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT


class Journal:
    """metrics.jsonl, with one row per log step and per evaluation, which the trackers get too.

    Args:
        workdir: where they go.
        step: rows of later steps, left by a killed run, are dropped.
        trackers: of the run.
    """

    def __init__(self, workdir: Workdir, step: int, trackers: Trackers):
        self.trackers = trackers
        try:
            self._file = _continued(workdir, step)
        except BaseException:
            trackers.close(finished=False)
            raise

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One row of `kind` ("train", "evaluation"), null for NaN and infinity.

        The trackers get its finite floats as KIND/NAME, those of the moving average as evaluation_ema/NAME.
        """
        self._file.write(to_json({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        group = f"{kind}_ema" if values.get("weights") == "ema" else kind
        figures = {
            f"{group}/{name}": value
            for name, value in values.items()
            if isinstance(value, float) and math.isfinite(value) and name not in ("epoch", "seconds")
        }
        self.trackers.log(step, figures)

    def sync(self) -> None:
        """Waits until the rows so far are on the disk."""
        os.fsync(self._file.fileno())

    def close(self, *, finished: bool) -> None:
        """Closes the file and the trackers; on a full disk the last rows are lost, without another error."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.trackers.close(finished=finished)


def _continued(workdir: Workdir, step: int) -> TextIO:
    """metrics.jsonl without the rows after `step` and the damaged lines, open for more."""
    rows, damaged = _parse(workdir)
    if damaged:
        aside = workdir.metrics.with_suffix(".jsonl.damaged")
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line in damaged)
        what = "a line that is" if len(damaged) == 1 else f"{len(damaged)} lines that are"
        logger.warning("moved %s no JSON row from %s to %s", what, workdir.metrics, aside)
    write_text(workdir.metrics, "".join(to_json(row) + "\n" for row in rows if row["step"] <= step))
    return workdir.metrics.open("a", encoding="utf-8")
