"""`python train.py --compare DIR DIR ...`: several runs in one plot and one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parity.conversion.files import tidied
from parity.trimmed import Trimmed
from resnet_flax.errors import UserError
from resnet_flax.figures import drawn
from resnet_flax.training.display import duration
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.plots import plot_curves, split_of
from resnet_flax.training.workdir import Workdir

OUT = "compare.png"


def main(workdirs: Sequence[str], console: Console) -> int:
    """Plots the runs' curves in compare.png beside the first, and prints their best results; returns the exit status.

    Raises:
        UserError: for fewer than two directories, one without metrics, or the same one twice.
    """
    if len(workdirs) < 2:
        raise UserError(f"--compare needs at least two workdirs; got {len(workdirs)}")
    runs, places = {}, {}
    for workdir in map(str, map(tidied, workdirs)):
        if (same := places.setdefault(os.path.realpath(workdir), workdir)) in runs:
            raise UserError(f"--compare got the same run twice: {same}" + f" and {workdir}" * (workdir != same))
        rows = read_metrics(Workdir(workdir))
        if not any(row["kind"] == "evaluation" and row["weights"] == "model" for row in rows):
            raise UserError(f"{workdir} has no run with an evaluation (in metrics.jsonl)")
        runs[workdir] = rows
    table = Table("run", box=None, pad_edge=False)
    for heading in ("best", "at epoch", "last", "train loss", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for workdir, rows in runs.items():
        evaluations = [row for row in rows if row["kind"] == "evaluation" and row["weights"] == "model"]
        best, last = max(evaluations, key=lambda row: row["accuracy"]), evaluations[-1]
        table.add_row(
            workdir,
            f"{best['accuracy']:.2%}",
            f"{best['epoch']:g}",
            f"{last['accuracy']:.2%}",
            "-" if last["train_loss"] is None else f"{last['train_loss']:.4f}",
            duration(last["seconds"]),
        )
    console.print(Trimmed(table))
    splits = " or ".join(dict.fromkeys(split_of(rows) for rows in runs.values()))
    title = f"thin lines: training; thick lines: {splits}; stars: the best accuracy"
    out = tidied(Path(workdirs[0], "..", OUT))
    is_drawn, note = drawn(out, lambda: plot_curves(runs, out, title=title))
    console.print(f"written: {out}" if is_drawn else f"note: {note}", highlight=False, soft_wrap=True)
    return 0
