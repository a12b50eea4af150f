"""The output of a run: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Generator, Sequence
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


def program() -> str:
    """What was started, as it follows the name of Python: "train.py" where that is, or the command."""
    script = sys.argv[0]
    return shlex.quote(script) if Path(script).name == "train.py" else "-m resnet_flax train"


def invocation() -> str:
    """The command that started training, as it works again in this directory."""
    found = shutil.which("python")
    python = "python" if found and Path(found).absolute() == Path(sys.executable).absolute() else _near(sys.executable)
    return f"{python} {program()}"


def _near(path: str) -> str:
    """A path below this directory as it is from here, any other as it is."""
    here = Path.cwd()
    return shlex.quote(str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path)


# The columns of the table of epochs, each with its heading on two lines; together they fit on 80 columns.
COLUMNS = (
    ("", "epoch", 7),
    ("", "loss", 7),
    ("", "accuracy", 8),
    ("{split}", "loss", 7),
    ("{split}", "accuracy", 8),
    ("learning", "rate", 8),
    ("", "images/s", 8),
    ("", "time", 8),
)


def _aligned(cells: Sequence[str]) -> str:
    pairs = zip(cells, (width for *_, width in COLUMNS), strict=True)
    return "  ".join(f"{cell:>{width}}" for cell, width in pairs).rstrip()


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


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
        self._has_headings = False
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("acc {task.fields[accuracy]:.1%}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
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

    def epoch(
        self,
        label: str,
        split: str,
        *,
        test: tuple[float, float],
        train: tuple[float, float, float] | None = None,
        seconds: float = 0.0,
        is_best: bool,
    ) -> None:
        """A row of the table of epochs, under its headings where it is the first.

        Args:
            label: "3/6".
            split: the name of the split that `test` comes from.
            test: (loss, accuracy).
            train: (loss, accuracy, learning rate) of the epoch; None for the moving average, which has its own row.
            seconds: since the start of the run.
            is_best: whether its weights are the best so far.
        """
        if not self._has_headings:
            self.say(_aligned([above.format(split=split) for above, *_ in COLUMNS]))
            self.say(_aligned([heading for _, heading, _ in COLUMNS]))
            self._has_headings = True
        loss, accuracy = test
        cells = [label, "", "", _loss(loss), f"{accuracy:.2%}", "", "", ""]
        if train is not None:
            cells[1:3] = _loss(train[0]), f"{train[1]:.2%}"
            cells[5:] = f"{train[2]:.3g}", f"{self.rate:,.0f}" if self.rate else "", duration(seconds)
        self.say(_aligned(cells) if not is_best else f"{_aligned(cells):<75} best")

    def start(self, step: int) -> None:
        """Starts the clock after `step` steps: earlier time, such as compilation, does not count towards the rate."""
        self._mark = (time.monotonic(), step)
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
            speed = f"  {self.rate:,.0f} images/s  {left} left" if self.rate else ""
            self.say(f"epoch {epoch}  step {step:,}/{self.total:,}  loss {loss:.4f}  acc {accuracy:.1%}{speed}")

    @contextmanager
    def pause(self) -> Generator[None]:
        """Time in this context (evaluation, checkpoints) does not count towards the rate."""
        then = time.monotonic()
        yield
        spent = time.monotonic() - then
        self._mark = (self._mark[0] + spent, self._mark[1])

    def stop(self) -> None:
        self._progress.stop()
