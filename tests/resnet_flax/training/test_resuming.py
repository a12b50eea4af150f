"""Resuming: more epochs, another number of devices, damaged weights, means over what two processes saw."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.errors import UserError
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.optimizers import make_schedule
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.workdir import Workdir
from tests import ROOT
from tests.conftest import CACHE
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network
from tests.resnet_flax.training.test_loop import assert_same_state, final_state, interrupt  # noqa: F401


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


def rows(folder):
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
        for row in read_metrics(Workdir(folder))
    ]


def test_more_epochs_of_a_finished_run(capsys):
    options = ["digits", *OPTIONS, "--schedule", "constant"]
    assert run(*options, "--workdir", "whole") == 0
    assert run(*options, "--epochs", "2", "--workdir", "more") == 0
    assert run("--resume", "--workdir", "more") == 0
    text = capsys.readouterr().out
    assert re.search(
        r"this run is finished; for more epochs:\n  \S*python\S* -m resnet_flax train --resume --work", text
    )
    assert run("--resume", "--workdir", "more", "--epochs", "3") == 0
    assert "epochs: 2 before, 3 now; the constant schedule continues as it was" in capsys.readouterr().out
    assert_same_state(final_state(Path("more")), final_state(Path("whole")))
    assert rows("more") == rows("whole")
    assert Path("more/best.safetensors").read_bytes() == Path("whole/best.safetensors").read_bytes()
    with pytest.raises(UserError, match="--epochs 1 is less than the 3 that more has; pass more"):
        run("--resume", "--workdir", "more", "--epochs", "1")
    with pytest.raises(UserError, match="or start a new run from its weights with --weights more/best.safetensors"):
        run("--resume", "--workdir", "more", "--epochs", "4", "--batch-size", "8")
    assert json.loads(Path("more/config.json").read_text())["config"]["schedule"]["epochs"] == 3


def test_more_epochs_under_a_schedule_that_depends_on_them(capsys):
    options = ["digits", *OPTIONS, "--schedule", "cosine"]
    assert run(*options, "--epochs", "1", "--workdir", "more") == 0
    assert run("--resume", "--workdir", "more", "--epochs", "3") == 0
    assert "from step 5 on, the cosine schedule is that of a run of 3" in capsys.readouterr().out
    config = RECIPES["digits"].config
    rates = {
        epochs: make_schedule(
            replace(config.schedule, epochs=epochs, schedule="cosine"), config.optimizer.learning_rate, 4
        )
        for epochs in (1, 3)
    }
    # Compiled and not, float32 rounds the phase and its cosine, from which 1 is subtracted near the end.
    rounding = 4 * float(np.finfo(np.float32).eps) * config.optimizer.learning_rate
    for row in rows("more"):
        if row["kind"] == "train":
            expected = rates[1 if row["step"] <= 4 else 3](row["step"] - 1)
            assert row["learning_rate"] == pytest.approx(float(expected), rel=0, abs=rounding)


def test_means_are_over_what_both_processes_saw(interrupt):  # noqa: F811
    """A row is written every third step; the first process stops between two of them."""
    options = ["digits", *OPTIONS, "--log-every", "3"]
    assert run(*options, "--workdir", "whole") == 0
    interrupt("train", 6, signal.SIGHUP)
    assert run(*options, "--workdir", "stopped") == 129
    interrupt(None, 0, 0)
    assert run("--resume", "--workdir", "stopped") == 0
    assert rows("stopped") == rows("whole")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])])
@pytest.mark.parametrize("best_by", ["accuracy", "loss"])
def test_damaged_best_weights_are_replaced(damage, best_by, caplog):
    assert run("digits", *OPTIONS, "--workdir", "here", "--best-by", best_by) == 0
    damage(Path("here/best.safetensors"))
    assert run("--resume", "--workdir", "here") == 0
    assert "best.safetensors" in caplog.text
    assert "the weights of step 12 take its place" in caplog.text
    assert read_checkpoint("here/best.safetensors").metadata["step"] == "12"
    damage(Path("here/best.safetensors"))
    assert run("--resume", "--workdir", "here", "--epochs", "4") == 0
    late = [row for row in rows("here") if row["kind"] == "evaluation"][-2:]
    best = max(late, key=lambda row: -row["loss"] if best_by == "loss" else row["accuracy"])
    assert read_checkpoint("here/best.safetensors").metadata["step"] == str(best["step"])


TRAIN = """
import sys
from resnet_flax.commands import train
from resnet_flax.training import setup
from tests.resnet_flax.training.small import create
setup.create_model = create
train.main(sys.argv[1:])
"""


def test_another_number_of_devices():
    """With synchronised norms, one device and two compute the same, up to rounding; here it is that they run."""

    def train(devices, *arguments):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        command = [sys.executable, "-c", TRAIN, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    train(2, "digits", *OPTIONS, "--epochs", "1", "--workdir", "run")
    text = train(1, "--resume", "--workdir", "run", "--epochs", "2")
    assert "devices: 2 at the start of the run, 1 now; the batch is the same" in text
    text = train(4, "--resume", "--workdir", "run", "--epochs", "3")
    assert "resumed after step 8" in text
    assert [row["step"] for row in rows("run") if row["kind"] == "train"] == list(range(1, 13))
