"""A report as one self-contained HTML page with plots."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parity.conversion.files import write_text
from parity.errors import needs_extra, printable
from parity.reports.results import Comparison, Report
from parity.reports.terminal import figure, top_heading, worst

with needs_extra("torch", "a report with plots"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_OURS, _THEIRS, _ORACLE, _LIMIT = "#c2410c", "#1d4ed8", "#111827", "#6b7280"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } code { font-size: 0.9em; }
th, td { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
td.n, th.n { text-align: right; } td:last-child { white-space: normal; min-width: 7rem; }
.ok { color: #15803d; } .bad { color: #b91c1c; font-weight: 600; } .note { color: #6b7280; font-size: 0.9em; }
svg { width: 100%; height: auto; } .wide { overflow-x: auto; } details { margin-top: 1rem; } figure { margin: 0; }
"""
_SUMMARY_NOTE = """<p class=note>Error: the norm of the difference over the norm of PyTorch's tensor. PyTorch's own: the
same between PyTorch and PyTorch with its computation rearranged. The figures are those of the tensor named.</p>"""
_FAILURES_NOTE = """<p class=note>Largest: the largest difference of two values. In ulp: that in units of the last place
which the precision has at PyTorch's largest value; 1 is the rounding of one operation. Cosine: of the angle between the
two tensors, 1 if they differ in scale alone.</p>"""
TICKS = 12  # names along an axis
LEAST = 1e-18  # of the errors drawn


def write_html(report: Report, path: Path) -> None:
    """Writes the page; it needs no other file.

    Raises:
        ParityError: if it cannot be written.
    """
    write_text(path, as_html(report))


def _tolerance(settings: dict) -> str:
    if "k" not in settings:  # pixels and class names have no noise
        return ""
    return (
        f" The oracle is PyTorch in float64. Allowed is {settings['k']:g} times PyTorch's own rounding error, and "
        f"at least {settings['least tolerance']:.1e}."
    )


def as_html(report: Report) -> str:
    settings = report.settings
    title = f"{settings['flax network']} in Flax, {settings['torch network']} in PyTorch"
    verdict = '<span class="ok">agree</span>' if report.passed else '<span class="bad">do not agree</span>'
    body = [
        f"<h1>{html.escape(str(settings.get('architecture', title)))}: the two networks {verdict}</h1>",
        f"<p>{html.escape(title)}, computed in {settings['precision']}.{_tolerance(settings)}</p>",
        _findings(report),
        _warnings(report),
        _summary(report),
        *_plots(report),
        _failures(report),
        f"<details><summary>Settings</summary>{_settings(report)}</details>",
    ]
    return page(report.headline, body)


def page(title: str, body: Sequence[str]) -> str:
    """The page with these parts, of which empty ones are left out; `title` is plain text."""
    parts = "\n".join(part for part in body if part)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>\n{parts}\n</html>\n"
    )


def _findings(report: Report) -> str:
    items = [
        f"<li><code>{html.escape(f.where or 'the network')}</code>: {html.escape(str(f))}</li>" for f in report.findings
    ]
    return f"<h2>Where they part, and why</h2><ul>{''.join(items)}</ul>" if items else ""


def _warnings(report: Report) -> str:
    items = [f"<li>{html.escape(warning)}</li>" for warning in report.warnings]
    return f"<h2>What the verdict does not cover</h2><ul>{''.join(items)}</ul>" if items else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]) -> str:
    """A table of cells in HTML; the columns in `numeric` are aligned to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i in numeric else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells('th', headings)}</tr>{body}</table></div>"


def _summary(report: Report) -> str:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for row in report.comparisons:
        groups.setdefault((row.check, row.mode), []).append(row)
    rows = []
    for (check, mode), members in groups.items():
        failed, top = sum(row.decides and not row.passed for row in members), worst(members)
        noted = sum(not row.passed for row in members) - failed
        verdict = f'<span class="bad">{failed} failed</span>' if failed else '<span class="ok">ok</span>'
        verdict += f", {noted} noted" if noted else ""
        figures = map(figure, (top.error.relative, top.floor, top.tolerance))
        rows.append([check, mode, str(len(members)), _place(top), *figures, verdict])
    headings = ["check", "mode", "tensors", top_heading(report), "error", "PyTorch's own", "allowed", ""]
    return "<h2>Summary</h2>" + table(headings, rows, (2, 4, 5, 6)) + _SUMMARY_NOTE


def _failures(report: Report) -> str:
    rows = [
        [
            row.check + (f" ({row.mode})" if row.mode else ""),
            _place(row),
            *map(figure, (row.error.relative, row.error.max_abs, row.error.ulp)),
            f"{row.error.cosine:.6f}",
            *map(figure, (row.floor, row.tolerance)),
            html.escape(row.note),
        ]
        for row in report.failures[:200]
    ]
    headings = ["check", "tensor", "error", "largest", "in ulp", "cosine", "PyTorch's own", "allowed", ""]
    shown = f", of which the first {len(rows)} are shown" if len(rows) < len(report.failures) else ""
    title = f"<h2>What failed ({len(report.failures)}{shown})</h2>"
    return title + _FAILURES_NOTE + table(headings, rows, range(2, 8)) if rows else ""


def _place(row: Comparison) -> str:
    return f"<code>{html.escape(row.name)}</code>" + (f", step {row.step}" if row.step else "")


def _settings(report: Report) -> str:
    flat = {**report.settings, **report.settings.get("versions", {})}
    flat.pop("versions", None)
    rows = [[html.escape(str(key)), html.escape(str(value))] for key, value in flat.items()]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report.notes)
    return table(["", ""], rows, ()) + notes


def _plots(report: Report) -> list[str]:
    sections = []
    for check, title, axis in (
        ("activations", "Error of the activations, along the network", "submodule, in order of computation"),
        ("gradients", "Error of the gradients, by parameter", "parameter, in order of definition"),
        ("batch_stats", "Error of the running statistics", "statistic, batch after batch"),
        ("optimizer", "Error after each optimiser step", "parameter or moment, step after step"),
    ):
        rows = [row for row in report.of(check) if row.error.relative < float("inf")]
        if len(rows) > 1:
            sections.append(f"<h2>{title}</h2>{_figure(lambda f, r=rows, a=axis: _errors(f, r, a), 3.2)}")
    if report.curves:
        height = 3.2
        sections.append(f"<h2>Loss, step by step</h2>{_figure(lambda f: _losses(f, report), height)}")
    return sections


def _figure(draw: Callable[[Figure], None], height: float) -> str:
    picture = Figure(figsize=(10, height), layout="constrained")
    draw(picture)
    stream = io.StringIO()
    picture.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _errors(picture: Figure, rows: list[Comparison], axis_label: str) -> None:
    modes = list(dict.fromkeys(row.mode for row in rows))
    panels = picture.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    smallest = min((value for row in rows for value in (row.error.relative, row.floor) if value > 0), default=1e-17)
    smallest = max(smallest, LEAST)
    for panel, mode in zip(panels, modes, strict=True):
        members = [row for row in rows if row.mode == mode]
        position = range(len(members))
        # An error of exactly zero sits on the bottom line.
        visible = lambda values: [max(value, smallest / 2) for value in values]  # noqa: E731
        floors = visible(row.floor for row in members)
        noise = {"color": _THEIRS, "alpha": 0.25, "linewidth": 0, "label": "PyTorch's own noise"}
        panel.fill_between(position, smallest / 2, floors, step="mid", **noise)
        panel.plot(
            position, [row.tolerance for row in members], color=_LIMIT, linewidth=1, linestyle="--", label="allowed"
        )
        panel.plot(
            position, visible(row.error.relative for row in members), ".", color=_OURS, markersize=4, label="Flax"
        )
        failed = next((row.name for row in members if row.decides and not row.passed), None)
        title = [f"{mode} mode"] * bool(mode) + [f"the first beyond the limit: {failed}"] * bool(failed)
        panel.set_title(printable(", ".join(title)), fontsize=10, parse_math=False)
        panel.set(yscale="log", xlabel=axis_label)
        _name_places(panel, members)
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("relative error (L2)")
    picture.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower left", ncols=3)


def _name_places(panel: Any, rows: list[Comparison]) -> None:
    """Ticks where a step, or else the next part of the network, begins, if these are few; else numbers."""
    parts = [f"step {row.step}" if row.step else printable(row.name).partition(".")[0] for row in rows]
    begins = [index for index, part in enumerate(parts) if index == 0 or part != parts[index - 1]]
    if len(begins) > TICKS:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    apart, shown = len(rows) / TICKS, []
    for index in begins:
        shown += [index] if not shown or index - shown[-1] >= apart else []
    panel.set_xticks(shown, [parts[index] for index in shown], rotation=30, ha="right", fontsize=8, parse_math=False)


def _losses(picture: Figure, report: Report) -> None:
    left, right = picture.subplots(1, 2)
    oracle, *_, candidate = report.curves.values()  # in the order in which they were computed
    labelled: set[str] = set()
    for name, curve in report.curves.items():
        steps = range(1, len(curve) + 1)
        ours = curve is candidate
        color = _OURS if ours else _ORACLE if curve is oracle else _THEIRS
        style = {"color": color, "linewidth": 1.6 if ours or curve is oracle else 1.0, "alpha": 1.0 if ours else 0.6}
        if ours:
            style["linestyle"] = "--"
        arranged = not ours and curve is not oracle
        label = "PyTorch, in other arrangements" if arranged else name
        left.plot(steps, curve, label=None if label in labelled else label, **style)
        labelled.add(label)
        if curve is not oracle:
            away = [abs(a - b) or float("nan") for a, b in zip(curve, oracle, strict=True)]
            right.plot(steps, away, **style)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="distance from PyTorch in float64", yscale="log")
    left.legend(frameon=False, fontsize=7)
    for panel in (left, right):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
