"""Text from outside: on a terminal, in JSON, in figures."""

import io
import json
import re

import numpy as np
import pytest
from rich.table import Table

from parity.errors import printable
from resnet_flax import figures
from resnet_flax.text import PlainConsole, to_json
from resnet_flax.training.plots import plot_confusion, plot_curves

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "[red]x[/nope]",
    "$\\frac{1$",
    "a\u202egnp.exe",
    "\x9b5n",
    ":smile:",
    "_x",
    "\udcff",
    "a\nb",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_terminal_obeys_is_printed(text):
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=60)
    table = Table(text)
    table.add_row(text)
    console.print(text, table, f"{text} and more")
    shown = stream.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", shown)
    assert all(line.rstrip() in shown for line in printable(text).splitlines())


def test_what_is_escaped_and_what_is_not():
    assert printable("\x1b[0m\r\x07\u2028\u2066") == "\\x1b[0m\\r\\x07\\u2028\\u2066"
    assert printable("Ünïcödé 中文 हिन्दी क्‍ष\tx\n") == "Ünïcödé 中文 हिन्दी क्‍ष\tx\n"


def test_json_has_no_nan():
    text = to_json({"a": [float("nan"), float("inf"), 1.5], "b": ("x", {"c": -float("inf")})})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, 1.5], "b": ["x", {"c": None}]}


def test_figures_show_hostile_names_as_they_are(tmp_path):
    names = [*HOSTILE, "x" * 500, "", "$a$ $b$"]
    assert plot_confusion(np.eye(len(names), dtype=int), names, tmp_path / "c.png") is None
    rows = [{"kind": "train", "epoch": 1, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1}]
    plot_curves(dict.fromkeys(names, rows), tmp_path / "r.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.png", "r.png"]


def test_names_without_a_font_become_numbers(tmp_path, monkeypatch):
    shown = figures.shown(["dog", "\U000f0000"])  # of the private use area: no font has it
    assert shown.texts == ["0", "1"]
    assert "no installed font" in shown.note
    assert figures.shown(["Hund", "собака", "σκύλος"]).note is None
    assert "no installed font" in plot_confusion(np.eye(2, dtype=int), ["dog", "\U000f0000"], tmp_path / "c.png")


def test_a_figure_that_fails_is_a_note(tmp_path):
    is_drawn, note = figures.drawn(
        tmp_path / "none" / "c.png", lambda: plot_confusion(np.eye(2, dtype=int), "ab", tmp_path / "none" / "c.png")
    )
    assert not is_drawn
    assert re.search(r"c\.png could not be drawn \(.*No such file.*\); nothing else depends on it", note)
