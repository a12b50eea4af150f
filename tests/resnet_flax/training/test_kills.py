"""A run killed at any change to any file of its workdir resumes to the same bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import CACHE
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network
from tests.resnet_flax.training.test_loop import assert_same_state, final_state
from tests.resnet_flax.training.test_resuming import rows

RUN = ["digits", *OPTIONS, "--mixup", "0.2", "--ema-decay", "0.9"]


def start(event, name, number, workdir):
    """The run, killed at that change; what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    }
    command = [sys.executable, "-m", "tests.resnet_flax.training.kill_worker", event, name, str(number)]
    done = subprocess.run(
        [*command, *RUN, "--workdir", str(workdir)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (9 if number else 0), done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left alone, and the number of its changes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    (changes,) = re.findall(r"(\d+) changes", start("", "", 0, folder))
    return folder, int(changes)


def assert_resumes(killed, whole):
    begun = (killed / "config.json").exists()
    assert run(*(["--resume"] if begun else RUN), "--workdir", str(killed)) == 0
    assert_same_state(final_state(killed), final_state(whole))
    assert rows(killed) == rows(whole)
    for name in ("best.safetensors", "best_ema.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    left = {path.name for path in killed.rglob("*") if "tmp" in path.name or "incomplete" in path.name}
    assert not left


@pytest.mark.parametrize(
    ("event", "name", "number"),
    [("os.link", "config.json", 1), ("os.rename", "best.safetensors", 1), ("os.rename", "metrics.jsonl", 1)],
)
def test_some_kills(whole, event, name, number):
    start(event, name, number, Path("killed"))
    assert_resumes(Path("killed"), whole[0])


@pytest.mark.full
def test_every_kill(whole):
    folder, changes = whole
    for number in range(1, changes):
        killed = Path(f"killed-{number}")
        start("", "", number, killed)
        assert_resumes(killed, folder)
