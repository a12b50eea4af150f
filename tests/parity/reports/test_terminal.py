"""What a report looks like in terminals of several widths."""

import io

import numpy as np
import pytest
from rich.console import Console

from parity.checks.tolerance import Error
from parity.reports.results import Comparison, Report
from parity.reports.terminal import as_renderable

SETTINGS = {"flax network": "Net", "torch network": "Net", "inputs": (2, 6, 6, 3), "precision": "float64"}


def report():
    names = ("output", "layer4.2.downsample.1.running_mean", "layer1.0.conv1.weight.momentum_buffer")
    rows = [
        Comparison(check, "train", name, Error(error, 2 * error, 3.0, 0.9871), 1.5e-16, 1e-10, step)
        for name, check, error, step in zip(
            names, ("forward", "activations", "batch_stats"), (3e-5, 2e-15, 1e-3), (None, None, 3), strict=True
        )
    ]
    return Report(SETTINGS, comparisons=rows)


def lines(width):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, markup=False).print(as_renderable(report()))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_figure_and_no_verdict_is_cut(width):
    text = lines(width)
    rows = [line.split() for line in text if line.startswith(("forward", "activations", "batch_stats"))]
    assert [row[-1] for row in rows[:3]] == ["FAILED", "ok", "FAILED"]
    assert all(row[-2] == "1.0e-10" for row in rows[:3])
    assert max(map(len, text)) <= width
    cut = [word for line in text for word in line.split() if "…" in word]
    assert all(word.startswith("…") for word in cut)  # of names, the beginning


def test_a_wide_terminal_shows_more_of_a_name():
    assert any("…wnsample.1.running_mean" in line for line in lines(100))
    assert not any("…wnsample.1.running_mean" in line for line in lines(80))
    assert np.char.str_len(lines(100)).max() <= 100
