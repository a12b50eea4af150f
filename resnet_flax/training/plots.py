"""Plots: curves.png, several runs in one figure, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import printable
from resnet_flax.figures import line, new_figure, save, shown

Rows = Sequence[Mapping[str, Any]]


def _figure(columns: int, size: tuple[float, float]):
    figure = new_figure(size, dpi=120)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def plot_curves(runs: Mapping[str, Rows], path: Path, *, title: str = "") -> None:
    """Loss, accuracy and learning rate over epochs from the rows of metrics.jsonl, one or more runs.

    Training is a thin line, evaluation a thick one with a marker per evaluation, the moving average dashed. A star
    marks the best accuracy of each run.

    Args:
        title: what the run is; that of one run also gets its best accuracy.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (loss, accuracy, rate) = _figure(3, (13, 4.2))
    several = len(runs) > 1
    for index, (label, rows) in enumerate(runs.items()):
        train = [row for row in rows if row["kind"] == "train"]
        evaluations = [row for row in rows if row["kind"] == "evaluation" and row["weights"] == "model"]
        averages = [row for row in rows if row["kind"] == "evaluation" and row["weights"] == "ema"]
        color, test = (f"C{index}", f"C{index}") if several else ("C0", "C1")
        split = split_of(rows)
        names = ("", label, f"{label} (EMA)") if several else ("train", split, f"{split} (EMA)")
        names = [line(name).lstrip("_") for name in names]  # matplotlib hides labels that start with "_"
        best = max((row for row in evaluations if row["accuracy"] is not None), key=_accuracy, default=None)
        for axis, key in ((loss, "loss"), (accuracy, "accuracy")):
            axis.plot(*_series(train, key), color=color, lw=1, alpha=0.6, label=names[0] or None)
            axis.plot(*_series(evaluations, key), color=test, lw=2, marker="o", ms=3, label=names[1])
            if averages:
                axis.plot(*_series(averages, key), color=test, lw=1.5, ls="--", label=names[2])
            if best is not None and best[key] is not None:
                axis.plot(best["epoch"], best[key], "*", color=test, ms=13, mec="white")
        rate.plot(*_series(train, "learning_rate"), color=color, lw=1.5, label=names[1] if several else None)
        if best is not None and not several:
            title += f"\nbest {split} accuracy {best['accuracy']:.2%} in epoch {best['epoch']:g} (star)"
    loss.set(title="loss", xlabel="epoch")
    positive = [row["loss"] for rows in runs.values() for row in rows if (row["loss"] or 0) > 0]
    if positive and max(positive) > 20 * min(positive):
        loss.set_yscale("log")
    accuracy.set(title="accuracy", xlabel="epoch")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    rate.set(title="learning rate", xlabel="epoch")
    rate.set_ylim(bottom=0)
    for axis in (loss, accuracy, rate):
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            for text in axis.legend(frameon=False).get_texts():
                text.set_parse_math(False)
    if title.strip():
        text = figure.suptitle("\n".join(printable(part) for part in title.strip().splitlines()))
        text.set_parse_math(False)
    save(figure, path, bbox_inches="tight")


def split_of(rows: Rows) -> str:
    """The split that the run was evaluated on; runs of earlier versions did not note it."""
    return next((row["split"] for row in rows if row["kind"] == "evaluation" and "split" in row), "test")


def _accuracy(row: Mapping[str, Any]) -> float:
    return row["accuracy"]


def _series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in rows if row[key] is not None]  # a skipped step has no loss
    return [row["epoch"] for row in rows], [row[key] for row in rows]


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], path: Path, *, title: str = "") -> str | None:
    """The confusion matrix (classes, classes), rows as fractions of the true class; with counts up to 20 classes.

    Returns a note if no font has the names of the classes.
    """
    classes = len(confusion)
    names = shown(class_names) if classes <= 60 else None
    longest = max(map(len, names.texts)) if names else 3
    upright = longest <= 3
    side, beside = min(max(4, 0.5 * classes), 14), 0.09 * longest  # inches of the matrix and of the names
    figure, (axis,) = _figure(1, (side + beside + 1.5, side + (0.2 if upright else beside) + 0.5))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, format=lambda value, _: f"{100 * value:g}%")
    bar.set_label("share of the true class's images")
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(line(title), parse_math=False)
    if names is not None:
        axis.set_xticks(range(classes), names.texts, rotation=0 if upright else 90, **names.style)
        axis.set_yticks(range(classes), names.texts, **names.style)
    if classes <= 20:
        for row, column in np.argwhere(confusion):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", color=shade, fontsize=8)
    save(figure, path, bbox_inches="tight")
    return None if names is None else names.note
