"""The page of a report: what its figures and columns name."""

import pytest

from parity.checks.tolerance import Error
from parity.reports.html import as_html
from parity.reports.results import Comparison, Report
from tests.parity.reports.test_terminal import SETTINGS, report

pytest.importorskip("matplotlib")


def activations(names, error=1e-15):
    rows = [Comparison("activations", "eval", name, Error(error, error, 1.0, 1.0), 1e-16, 1e-10) for name in names]
    return as_html(Report(SETTINGS, comparisons=rows))


def drawn(page: str) -> list[str]:
    """The texts of the figures, which matplotlib keeps as comments."""
    return [line.strip()[5:-4] for line in page.splitlines() if line.strip().startswith("<!-- ")]


def test_a_figure_names_the_parts_of_the_network_where_they_begin():
    texts = drawn(activations(["conv1", "layer1.0.conv1", "layer1.0.bn1", "layer2.0.conv1", "fc"]))
    assert [text for text in texts if text in ("conv1", "layer1", "layer2", "fc")] == [
        "conv1",
        "layer1",
        "layer2",
        "fc",
    ]
    assert "relative error (L2)" in texts
    many = drawn(activations([f"block{number}" for number in range(40)]))
    assert not any(text.startswith("block") for text in many)


def test_names_that_would_overlap_are_thinned_out():
    texts = drawn(activations(["conv1", "bn1", *(f"layer1.{number}" for number in range(60)), "fc"]))
    assert "conv1" in texts
    assert "bn1" not in texts


def test_a_figure_names_the_first_tensor_beyond_the_limit():
    assert "eval mode, the first beyond the limit: conv1" in drawn(activations(["conv1", "fc"], error=1e-3))
    assert "eval mode" in drawn(activations(["conv1", "fc"]))


def test_the_columns_are_explained_and_steps_named():
    page = as_html(report())
    assert "In ulp: that in units of the last place" in page
    assert "<code>layer1.0.conv1.weight.momentum_buffer</code>, step 3" in page
    assert '<meta name="viewport"' in page
