"""The training screen: a table of epochs that fits, and a command that works again."""

import io
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from resnet_flax.training.display import Display, invocation


def screen(width, rows):
    stream = io.StringIO()
    display = Display(Console(file=stream, width=width), total=10, done=0, batch_size=8)
    display.rate = 12_345.6
    for row in rows:
        display.epoch(**row)
    return stream.getvalue().splitlines()


EPOCH = {"split": "val", "test": (1.25, 0.5), "train": (0.123456, 1.0, 0.1), "seconds": 36_000, "is_best": True}


@pytest.mark.parametrize("width", [80, 100])
def test_rows_of_epochs_fit_under_named_columns(width):
    rows = [
        EPOCH | {"label": "600/600"},
        EPOCH | {"label": "EMA", "train": None, "is_best": False},
        EPOCH | {"label": "1/600", "train": (12_345.678, 0.0, 3.2e-07), "test": (float("nan"), 0.0), "is_best": False},
    ]
    above, headings, *lines = screen(width, rows)
    assert above.split() == ["val", "val", "learning"]
    assert headings.split() == ["epoch", "loss", "accuracy", "loss", "accuracy", "rate", "images/s", "time"]
    assert lines[0].split() == ["600/600", "0.1235", "100.00%", "1.2500", "50.00%", "0.1", "12,346", "10:00:00", "best"]
    assert lines[1].split() == ["EMA", "1.2500", "50.00%"]
    assert lines[1].index("1.2500") == lines[0].index("1.2500")
    for line in (above, headings, *lines):
        assert len(line) <= 80
        assert line == line.rstrip()


def test_headings_appear_once():
    assert len(screen(80, [EPOCH | {"label": f"{number}/3"} for number in (1, 2, 3)])) == 5


def test_a_line_of_progress_has_no_rate_before_there_is_one(monkeypatch):
    stream = io.StringIO()
    display = Display(Console(file=stream, width=80), total=10, done=0, batch_size=8)
    monkeypatch.setattr(display, "_line_due", 0.0)
    display.step(1, epoch="1/2", loss=2.5, accuracy=0.25)
    assert stream.getvalue() == "epoch 1/2  step 1/10  loss 2.5000  acc 25.0%\n"


@pytest.mark.parametrize("name", ["train.py", "with a space/train.py"])
def test_the_command_works_where_it_was_called(name, monkeypatch, tmp_path):
    script = tmp_path / name
    script.parent.mkdir(exist_ok=True)
    script.write_text("print('started')")
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setattr(sys, "argv", [f"../{name}"])
    done = subprocess.run(shlex.split(invocation()), capture_output=True, text=True, check=True)
    assert done.stdout == "started\n"
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no python
    assert shlex.split(invocation()) == [sys.executable, f"../{name}"]
    monkeypatch.setattr(sys, "argv", ["/elsewhere/resnet_flax/__main__.py"])
    assert shlex.split(invocation())[1:] == ["-m", "resnet_flax", "train"]
