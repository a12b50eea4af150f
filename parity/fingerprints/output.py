"""What `parity.fingerprint` found, as a table, as JSON, as a plot and as a page with both."""

import html
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from parity.conversion.files import write_text, write_whole
from parity.errors import needs_extra, printable
from parity.fingerprints.report import Fingerprint, Row
from parity.trimmed import Trimmed

HEADINGS = ("candidate", "discrepancy", "95%", "more than the best's", "first departs at", "")
LINES = 6  # candidates in the plot
CAPTION = (
    "The best candidate's line is black. Others are drawn as far as they were compared with it, dashed if they cannot "
    "be told apart; a circle is where one first departs."
)


def as_renderable(report: Fingerprint) -> Group:
    """What `rich` prints: a row for each candidate, then the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in HEADINGS[1:4] else "left")
    for row in report.rows:
        table.add_row(*(Text(printable(cell)) for cell in _cells(report, row)))
    title = f"{report.title}: {report.images} images, {len(report.rows)} candidates"
    return Group(Text(printable(title)), table, Text(""), Text(printable(report.verdict)))


def _cells(report: Fingerprint, row: Row) -> list[str]:
    low, high = row.interval
    cells = [report.name(row), f"{row.discrepancy:.3f}", f"{low:.3f} to {high:.3f}"]
    if row.difference is None:
        return [*cells, "", "", "best"]
    apart = f"{row.difference.value:+.3f} ± {row.difference.margin:.3f}"
    return [*cells, apart, row.first_departure or "", "" if row.is_told else "not told apart"]


def as_text(report: Fingerprint) -> str:
    """The table as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None, markup=False, emoji=False).print(Trimmed(as_renderable(report)))
    return stream.getvalue().rstrip("\n")


def write_json(report: Fingerprint, path: Path) -> None:
    """One JSON object: "candidates", the best first, and "verdict".

    Raises:
        ParityError: if it cannot be written.
    """
    write_text(path, json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")


def write_plot(report: Fingerprint, path: Path) -> None:
    """The discrepancy along the network, of the best candidate and the nearest others, in the format of the ending.

    Those that are told apart come first; the others' lines are dashed. A circle is the first norm that tells two apart.

    Raises:
        ParityError: if it cannot be written.
    """
    picture = _drawn(report)
    kind = path.suffix.removeprefix(".") or "png"
    write_whole(path, lambda file: picture.savefig(file, format=kind))


def write_html(report: Fingerprint, path: Path) -> None:
    """The table and the plot as one page that needs no other file.

    Raises:
        ParityError: if it cannot be written.
    """
    from parity.reports.html import page, table

    stream = io.StringIO()
    _drawn(report).savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    rows = [[html.escape(cell) for cell in _cells(report, row)] for row in report.rows]
    body = [
        f"<h1>{html.escape(report.title)}: what its weights expect</h1>",
        f"<p>{html.escape(report.verdict[0].upper() + report.verdict[1:])}.</p>",
        f"<h2>Discrepancy along the network</h2><figure>{svg[svg.index('<svg') :]}</figure><p>{CAPTION}</p>",
        "<h2>Candidates</h2>" + table(HEADINGS, rows, (1, 2, 3)),
    ]
    write_text(path, page(report.title, body))


def _drawn(report: Fingerprint) -> Any:
    with needs_extra("torch", "a plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    picture = Figure(figsize=(12, 5), layout="constrained")
    axes = picture.subplots()
    places = {name: place for place, name in enumerate(report.best.curve)}
    others = sorted((row for row in report.rows[1:] if row.curve), key=lambda row: not row.is_told)
    shown = [report.best, *others[:LINES]]
    for number, row in reversed(list(enumerate(shown))):
        positions, values = [places[name] for name in row.curve], list(row.curve.values())
        label = str(row.candidate) if row is report.best else report.name(row)
        if row is report.best:
            axes.plot(positions, values, color="black", linewidth=2, label=label)
            continue
        style = "-" if row.is_told else "--"
        axes.plot(positions, values, style, color=f"C{number - 1}", linewidth=1.5, marker=".", label=label)
        if (first := row.first_departure) is not None:
            axes.plot(
                places[first], row.curve[first], "o", color=f"C{number - 1}", markersize=8, markerfacecolor="none"
            )
    step = max(1, len(places) // 30)
    axes.set_xticks(list(places.values())[::step], list(places)[::step], rotation=90, fontsize=8, parse_math=False)
    axes.set(yscale="log", ylabel="discrepancy of the norm's input")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return picture
