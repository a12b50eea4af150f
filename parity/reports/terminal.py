"""A report as a terminal table and as JSON; the page with plots is in `parity.reports.html`."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.errors import printable
from parity.reports.results import Comparison, Report
from parity.trimmed import Trimmed

WIDTH = 100
FAILURES_SHOWN = 8
SHORTEST = 8
NUMBERS = ("tensors", "failed", "error", "largest", "cosine", "PyTorch's", "allowed")


def worst(comparisons: Iterable[Comparison]) -> Comparison:
    """The one nearest to its tolerance, or furthest beyond."""
    return max(comparisons, key=lambda comparison: comparison.excess)


def top_heading(report: Report) -> str:
    """What heads the column of `worst`."""
    return "worst" if report.failures else "nearest the limit"


def as_renderable(report: Report) -> Group:
    """What `rich` prints: a row for each check and mode, then what failed, where and why."""
    parts: list[Any] = [_title(report), _summary(report)]
    if report.failures:
        parts += [Text(f"\n{len(report.failures)} of {len(report.comparisons)} comparisons failed")]
        notes = [f"{row.check}, {_place(row)}: {row.note}" for row in report.failures if _was_not_compared(row)]
        parts += [Text(printable(note)) for note in notes[:FAILURES_SHOWN]]
        if len(notes) > FAILURES_SHOWN:
            parts += [Text(f"and {len(notes) - FAILURES_SHOWN} more")]
        if len(notes) < len(report.failures):
            parts += [_failures(report)]
    for finding in report.findings:
        # Text, not markup: names have brackets.
        parts += [Text(f"\n{printable(finding.where or 'the network')}", style="bold")]
        parts += [Padding(Text(printable(finding)), (0, 0, 0, 2))]
    parts += [Text(f"warning: {printable(warning)}", style="yellow") for warning in report.warnings]
    parts += [Text(f"note: {printable(note)}", style="dim") for note in report.notes]
    return Group(*parts)


def as_text(report: Report) -> str:
    """The table as plain text, 100 columns wide."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, markup=False, emoji=False).print(
        Trimmed(as_renderable(report))
    )
    return stream.getvalue().rstrip("\n")


def figure(value: float) -> str:
    """Two digits: 0, 3.1e-16, inf."""
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else str(value)


def sizes(inputs: Any) -> str:
    """4x32x32x3; of several inputs each with its name."""
    if isinstance(inputs, dict):
        return ", ".join(f"{name} {sizes(shape)}" for name, shape in inputs.items())
    return "x".join(map(str, inputs))


def _title(report: Report) -> Text:
    settings = report.settings
    ours, theirs = settings.get("frameworks", ("Flax", "PyTorch"))
    networks = f"{settings['flax network']} in {ours} and {settings['torch network']} in {theirs}"
    inputs = sizes(settings["inputs"])
    verdict = ("agree", "bold green") if report.passed else ("do NOT agree", "bold red")
    return Text.assemble(printable(f"{networks} "), verdict, printable(f": {settings['precision']}, inputs {inputs}"))


@dataclass(frozen=True)
class _Comparisons:
    """A table whose names of tensors are shortened to what the terminal's width leaves them; figures never are.

    Attributes:
        headings: one for each column; those in `NUMBERS` are aligned to the right.
        rows: with a name of a tensor, or "", in the column `names`.
        longest: the most characters of a name.
        more: what follows the rows, in that column.
    """

    headings: tuple[str, ...]
    rows: list[tuple[str | Text, ...]]
    names: int
    longest: int
    more: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        columns = list(zip(self.headings, *self.rows, strict=True))
        used = sum(max(map(len, column)) for index, column in enumerate(columns) if index != self.names)
        gap = 2 if used + 2 * len(columns) + self.longest <= options.max_width else 1
        width = max(SHORTEST, min(self.longest, options.max_width - used - gap * len(columns)))
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for index, heading in enumerate(self.headings):
            heading = heading if index != self.names or width >= len(heading) else heading.partition(" ")[0]
            table.add_column(heading, justify="right" if heading in NUMBERS else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row[: self.names], _shortened(str(row[self.names]), width), *row[self.names + 1 :])
        if self.more:
            table.add_row(*[""] * self.names, self.more)
        yield table


def _summary(report: Report) -> _Comparisons:
    headings = ("check", "mode", "tensors", "failed", top_heading(report), "error", "PyTorch's", "allowed", "")
    table: list[tuple[str | Text, ...]] = []
    for (check, mode), group in groupby(report.comparisons, key=lambda row: (row.check, row.mode)):
        rows = list(group)
        top = worst(rows)
        failed = sum(row.decides and not row.passed for row in rows)
        noted = sum(not row.passed for row in rows) - failed
        verdict = Text("FAILED", "bold red") if failed else Text(f"ok, {noted} noted" if noted else "ok", "green")
        figures = (figure(top.error.relative), figure(top.floor), figure(top.tolerance))
        table.append((check, mode, str(len(rows)), str(failed), _place(top), *figures, verdict))
    return _Comparisons(headings, table, names=4, longest=24)


def _failures(report: Report) -> _Comparisons:
    failures = [row for row in report.failures if not _was_not_compared(row)]
    rows: list[tuple[str | Text, ...]] = [
        (
            row.check,
            row.mode,
            _place(row),
            figure(row.error.relative),
            figure(row.error.max_abs),
            f"{row.error.cosine:.4f}",
            figure(row.floor),
            figure(row.tolerance),
        )
        for row in failures[:FAILURES_SHOWN]
    ]
    more = f"and {len(failures) - FAILURES_SHOWN} more" if len(failures) > FAILURES_SHOWN else ""
    headings = ("check", "mode", "where", "error", "largest", "cosine", "PyTorch's", "allowed")
    return _Comparisons(headings, rows, names=2, longest=31, more=more)


def _was_not_compared(row: Comparison) -> bool:
    return bool(row.note) and math.isinf(row.error.relative)


def _place(row: Comparison) -> str:
    return printable(row.name) + (f", step {row.step}" if row.step else "")


def _shortened(text: str, width: int) -> str:
    """The end of a path is more telling than its beginning."""
    return text if len(text) <= width else "…" + text[1 - width :]
