"""A run ended at any moment, by a kill or a signal, resumes to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.workdir import Workdir
from tests import ROOT
from tests.conftest import CACHE
from tests.resnet_flax.training.moments import MOMENTS
from tests.resnet_flax.training.small import OPTIONS, STEPS

RUN = ["digits", "--device", "cpu", *OPTIONS, "--mixup", "0.2", "--ema-decay", "0.9"]
WEIGHTS = ("best.safetensors", "best_ema.safetensors")


class Server:
    """The process that runs the train commands (kill_worker.py)."""

    def __init__(self, preload=None):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "PYTHONWARNINGS": "ignore",  # about forks
            **({"LD_PRELOAD": str(preload)} if preload else {}),
        }
        command = [sys.executable, "-m", "tests.resnet_flax.training.kill_worker"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments, workdir, fault=()):
        """(exit status, what it printed, changes counted)."""
        case = {"arguments": [*arguments, "--workdir", str(workdir)], "fault": list(fault)}
        print(json.dumps(case), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def finish(self, workdir, options=RUN):
        """Resumes a run that was ended, or starts it if there is none yet; what it printed."""
        begun = (workdir / "config.json").exists()
        status, printed, _ = self.run(["--resume"] if begun else options, workdir)
        assert status == 0, printed
        return printed


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.kill()
    server.process.communicate()


def result_of(workdir):
    """What a run leaves: the checksum over all bits of the state, the metrics, the best weights."""
    progress = json.loads((workdir / "checkpoints" / str(STEPS) / "progress" / "metadata").read_text())
    timed = ("seconds", "images_per_second")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(Workdir(workdir))]
    without_time = {name: value for name, value in progress.items() if name not in timed}
    return without_time, rows, *((workdir / name).read_bytes() for name in WEIGHTS)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The result of a run left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    server.finish(folder)
    return result_of(folder)


def assert_finishes(server, killed, whole, options=RUN):
    server.finish(killed, options)
    assert result_of(killed) == whole
    assert not [path.name for path in killed.rglob("*") if "tmp" in path.name or "incomplete" in path.name]


@pytest.mark.parametrize(
    ("event", "name"),
    [("os.link", "config.json"), ("os.rename", "best.safetensors"), ("os.rename", "metrics.jsonl")],
)
def test_a_kill_at_a_change_to_a_file(server, whole, tmp_path, event, name):
    status, printed, _ = server.run(RUN, tmp_path / "run", ["change", event, name, 1])
    assert status == 9, printed
    assert_finishes(server, tmp_path / "run", whole)


STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
SAVES = ("compile", "training", "evaluation", "batches of an evaluation", "export", "saving", "plot")


def end_by(server, whole, workdir, number, moment, options=RUN, seconds=0.0):
    status, printed, _ = server.run(options, workdir, ["signal", int(number), moment, seconds])
    finished = ((STATUS[number], "To resume:"), (0, "curves"))  # the second if it came too late to stop anything
    if number == signal.SIGKILL:
        assert status == -9, printed
    elif moment in SAVES:
        assert any(status == expected and words in printed for expected, words in finished), (status, printed)
    else:  # nothing waits for the end of a step: the signals do what they do to any program
        assert status in (STATUS[number], -number), (status, printed)
    assert "Traceback" not in printed
    if number == signal.SIGINT and moment in ("start", "data"):
        assert not workdir.exists()
    assert_finishes(server, workdir, whole, options)


def test_a_signal_while_it_compiles(server, whole, tmp_path):
    end_by(server, whole, tmp_path / "run", signal.SIGTERM, "compile")


@pytest.mark.full
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", STATUS)
def test_every_signal_at_every_moment(server, whole, tmp_path, number, moment, workers):
    seconds = 0.2 if moment == "compile" else 0.0  # in the midst of it
    end_by(server, whole, tmp_path / "run", number, moment, [*RUN, "--workers", workers], seconds)


@pytest.mark.full
def test_a_kill_in_every_write(server, whole, tmp_path):
    """Half of it is written. What TensorStore's C++ and safetensors' Rust write counts too."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "killer.so"
    source = Path(__file__).with_name("killer.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    killing = Server(preload=library)
    status, printed, changes = killing.run(RUN, tmp_path / "counted", ["write", 0])
    assert status == 0, printed
    assert changes > 200
    ended = 0
    for number in range(1, changes + 1):
        workdir = tmp_path / f"run-{number}"
        status, printed, _ = killing.run(RUN, workdir, ["write", number])
        assert status in (-9, 0), printed  # the threads that write need not make the same number of changes
        ended += status == -9
        assert_finishes(server, workdir, whole)
        shutil.rmtree(workdir)
    print(f"{ended} kills")
    assert ended > changes * 0.9
    killing.process.kill()
    killing.process.communicate()
