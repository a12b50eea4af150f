"""metrics.jsonl: what is dropped on resuming, and a full disk."""

import io
import json
import math
from pathlib import Path

import pytest

from resnet_flax.trackers.base import TrackedRun
from resnet_flax.trackers.registry import Trackers
from resnet_flax.training.metrics import Journal, read_metrics
from resnet_flax.training.workdir import Workdir


def opened(workdir, step):
    return Journal(workdir, step, Trackers({}, TrackedRun(workdir.path, "p", "n", {}), pytest.fail))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_reaches_the_caller_once(tmp_path):
    journal = opened(Workdir(tmp_path), 0)
    with Path("/dev/full").open("wb", buffering=0) as device:
        journal._file.close()
        journal._file = io.TextIOWrapper(device, write_through=True)
        with pytest.raises(OSError, match="No space left"):
            journal.write("evaluation", 1, loss=1.0)
        journal.close(finished=False)


def write_rows(workdir, steps):
    journal = opened(workdir, 0)
    for step in steps:
        journal.write("train", step, epoch=1.0, loss=float(step), accuracy=math.nan, learning_rate=0.1)
    journal.close(finished=True)


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    workdir = Workdir(tmp_path)
    write_rows(workdir, (1, 2, 3))
    with workdir.metrics.open("a") as file:
        file.write('{"kind": "train", "st')  # cut off when the run was killed
    opened(workdir, 2).close(finished=True)
    assert [row["step"] for row in map(json.loads, workdir.metrics.read_text().splitlines())] == [1, 2]
    assert read_metrics(workdir)[-1]["loss"] == 2


DAMAGE = [
    b'{"kind":',
    b"\xff\xfe\x00",
    b"[]",
    b"5",
    b'{"kind": "train", "step": 2}',
    b"[" * 100_000,
    b'{"kind": 1, "step": 2}',
    b'{"kind": "evaluation", "step": 2, "epoch": 1, "weights": "model", "accuracy": null, "seconds": 1, "loss": 1, '
    b'"train_loss": 1}',
    b'{"kind": "train", "step": 2, "epoch": NaN, "loss": 1, "accuracy": 1, "learning_rate": 1}',
    b'{"kind": "train", "step": 2, "epoch": true, "loss": 1, "accuracy": 1, "learning_rate": 1}',
    b'{"kind": "train", "step": 2, "epoch": 1' + b"0" * 400 + b', "loss": 1, "accuracy": 1, "learning_rate": 1}',
    b'{"kind": "evaluation", "step": 2, "epoch": 1, "weights": "model", "accuracy": 1, "seconds": 1, "loss": 1, '
    b'"train_loss": 1, "macro_f1": "x"}',
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("where", [0, 2, 3])
def test_a_damaged_line_is_kept_aside_and_nothing_else_is_lost(tmp_path, caplog, damage, where):
    workdir = Workdir(tmp_path)
    write_rows(workdir, (1, 2, 3))
    lines = workdir.metrics.read_bytes().splitlines(keepends=True)
    workdir.metrics.write_bytes(b"".join([*lines[:where], damage + b"\n", *lines[where:]]))
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2, 3]
    opened(workdir, 3).close(finished=True)
    assert workdir.metrics.read_bytes() == b"".join(lines)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damage + b"\n"
    (record,) = caplog.records
    assert record.getMessage().startswith("moved a line that is no JSON row from ")


def test_numbers_that_json_lacks_become_null(tmp_path):
    workdir = Workdir(tmp_path)
    row = '{"kind": "train", "step": 1, "epoch": 1.0, "loss": %s, "accuracy": 0.5, "learning_rate": 0.1}\n'
    workdir.metrics.write_text("".join(row % number for number in ("NaN", "-Infinity", "1e999")))
    opened(workdir, 1).close(finished=True)
    assert workdir.metrics.read_text() == row % "null" * 3
