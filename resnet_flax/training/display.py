"""The output of a run: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def counted(number: int, noun: str) -> str:
    """1 epoch, 1,000 epochs."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def invocation() -> str:
    """The command that was used to start training; `train.py` exists only in a checkout."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "python -m resnet_flax train"


class Display:
    """Reports the progress of one run.

    Args:
        console: where to; quiet on all processes but the first.
        total: steps of the whole run.
        done: steps taken before this run was resumed.
        batch_size: images per step.
    """

    def __init__(self, console: Console, *, total: int, done: int, batch_size: int):
        self.console, self.total, self.batch_size = console, total, batch_size
        self._mark = (time.monotonic(), done)
        self._line_due = time.monotonic() + LINE_SECONDS
        self.rate = 0.0
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("acc {task.fields[accuracy]:.1%}"),
            TextColumn("{task.fields[rate]:,.0f} img/s"),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[memory]}"),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def start(self) -> None:
        """Starts the clock: earlier time, such as compilation, does not count towards the rate."""
        self._mark = (time.monotonic(), self._mark[1])
        self._progress.start()

    def step(self, step: int, *, epoch: str, loss: float, accuracy: float, memory: str = "") -> None:
        """Shows the state after `step` steps."""
        now, (then, before) = time.monotonic(), self._mark
        if now - then > 1.0 and step > before:
            rate = (step - before) / (now - then) * self.batch_size
            self.rate = rate if not self.rate else 0.7 * self.rate + 0.3 * rate
            self._mark = (now, step)
        left = duration((self.total - step) * self.batch_size / self.rate) if self.rate else "?"
        fields: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            "rate": self.rate,
            "left": left,
            "memory": memory,
        }
        if self._task is None:
            self._task = self._progress.add_task("", total=self.total, completed=step, **fields)
        self._progress.update(self._task, completed=step, **fields)
        if not self.console.is_terminal and now > self._line_due:
            self._line_due = now + LINE_SECONDS
            self.say(
                f"epoch {epoch}  step {step:,}/{self.total:,}  loss {loss:.4f}  acc {accuracy:.1%}  "
                f"{self.rate:,.0f} img/s  {left} left"
            )

    @contextmanager
    def pause(self) -> Generator[None]:
        """Time in this context (evaluation, checkpoints) does not count towards the rate."""
        then = time.monotonic()
        yield
        spent = time.monotonic() - then
        self._mark = (self._mark[0] + spent, self._mark[1])

    def stop(self) -> None:
        self._progress.stop()
