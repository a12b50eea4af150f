"""The training loop: what a run writes, interruptions and kills, resuming, and what stops a run."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from parity import ParityError
from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.errors import UserError
from resnet_flax.training import best, loop, memory, setup
from resnet_flax.training.metrics import Journal, read_metrics
from resnet_flax.training.plots import plot_curves
from resnet_flax.training.workdir import Workdir
from tests import ROOT
from tests.compilation import compilations
from tests.resnet_flax.training.small import OPTIONS, STEPS, make_folder, run, use_small_network

# Where reading a damaged file fails, Orbax leaves coroutines behind that nobody waits for; gc brings it up here.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


def final_state(folder):
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    state = ocp.StandardCheckpointer().restore((last / "state").absolute())
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(state)}


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


MIXED = [*OPTIONS, "--mixup", "0.2", "--ema-decay", "0.9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two runs that nothing interrupts: of `OPTIONS` in plain, and of `MIXED` in mixed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_small_network(patch, folder)
        assert run("digits", *OPTIONS, "--workdir", "plain") == 0
        assert run("digits", *MIXED, "--workdir", "mixed") == 0
    return folder


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(kind, step, number): sends this process a signal when that row is about to be written."""
    written = Journal.write

    def at(kind, step, number):
        def write(self, row_kind, row_step, **values):
            if (row_kind, row_step, values.get("weights", "model")) == (kind, step, "model"):
                os.kill(os.getpid(), number)
            written(self, row_kind, row_step, **values)

        monkeypatch.setattr(Journal, "write", write)

    yield at
    monkeypatch.setattr(Journal, "write", written)


def test_a_run_leaves_everything_behind(monkeypatch, capsys):
    monkeypatch.setattr(loop, "plot_curves", plot_curves)
    with compilations() as programs:
        assert run("digits", *OPTIONS, "--ema-decay", "0.5") == 0
    assert (programs.count("jit(step)"), programs.count("jit(add)")) == (1, 1), programs  # of training, evaluation
    folder = Path("runs/digits-1")
    text = capsys.readouterr().out
    for word in ("compiling", "    3/3  ", "test accuracy", "best.safetensors", "metrics.jsonl", "curves.png"):
        assert word in text
    rows = read_metrics(Workdir(folder))
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [(row["step"], row["weights"]) for row in rows if row["kind"] == "evaluation"] == [
        (step, weights) for step in (4, 8, 12) for weights in ("model", "ema")
    ]
    assert {"loss", "accuracy", "top5", "train_loss", "train_accuracy", "epoch", "seconds"} <= rows[-1].keys()
    saved = json.loads((folder / "config.json").read_text())
    assert saved["config"]["schedule"]["epochs"] == 3
    assert saved["versions"]["jax"] == jax.__version__
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("best.safetensors", "best_ema.safetensors"):
        best = read_checkpoint(folder / name)
        assert best.tensors["conv1.weight"].shape == (8, 1, 3, 3)
        assert json.loads(best.metadata["class_names"]) == [str(number) for number in range(64)]
    assert run("digits", *OPTIONS) == 0
    assert Path("runs/digits-2/config.json").exists()


@pytest.mark.parametrize(
    ("number", "kind", "step", "status"),
    [(signal.SIGTERM, "train", 6, 143), (signal.SIGINT, "evaluation", 4, 130)],
)
def test_interrupted_runs_go_on_bit_for_bit(whole, interrupt, capsys, monkeypatch, number, kind, step, status):
    with monkeypatch.context():
        interrupt(kind, step, number)
        assert run("digits", *MIXED, "--workdir", "stopped") == status
    text = capsys.readouterr().out
    assert "Finishing this step, then saving. Press Ctrl-C again to quit without saving." in text
    assert "Saved after step " in text
    assert " -m resnet_flax train --resume --workdir stopped" in text
    reached = max(row["step"] for row in read_metrics(Workdir("stopped")))
    assert step <= reached < STEPS
    interrupt(None, 0, 0)
    assert run("--resume", "--workdir", "stopped") == 0
    assert_same_state(final_state(Path("stopped")), final_state(whole / "mixed"))

    def kept(row):
        return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}

    assert [kept(row) for row in read_metrics(Workdir("stopped"))] == [
        kept(row) for row in read_metrics(Workdir(whole / "mixed"))
    ]


def test_a_second_ctrl_c_stops_at_once():
    program = (
        "import os, signal; from resnet_flax.training.interruption import Interruption\n"
        "with Interruption(lambda text: print(text, flush=True)):\n"
        "    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
        "    print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("Finishing this step, then saving.")
    assert second == "interrupted"


KILLED_WHILE_SAVING = """
import os, signal, sys
from resnet_flax.training import setup
from resnet_flax.training.checkpoints import Checkpoints
from resnet_flax.commands import train
from tests.resnet_flax.training.small import create

save = Checkpoints.save

def save_and_die(self, state, progress):
    save(self, state, progress)
    if int(state["step"]) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

setup.create_model, Checkpoints.save = create, save_and_die
train.main(sys.argv[1:])
"""


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(whole):
    """The small version of benchmarks/kill_resume.py."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, "digits", *MIXED, "--workdir", "killed"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Path("killed/checkpoints/4").is_dir()
    assert run("--resume", "--workdir", "killed") == 0
    assert_same_state(final_state(Path("killed")), final_state(whole / "mixed"))


def test_resuming_takes_the_run_before_a_damaged_checkpoint(whole, caplog):
    shutil.copytree(whole / "plain", "damaged")
    for path in Path("damaged/checkpoints/12/state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run("--resume", "--workdir", "damaged") == 0
    gc.collect()
    assert "skipped the damaged checkpoint of step 12" in caplog.text
    assert_same_state(final_state(Path("damaged")), final_state(whole / "plain"))


def test_losses_that_are_not_finite(capsys):
    options = ["digits", *OPTIONS, "--optimizer", "sgd", "--learning-rate", "1e30", "--schedule", "constant"]
    with pytest.raises(UserError, match=r"of step \d+ is not finite .* learning rate 1e\+30\); there is no checkpoint"):
        run(*options, "--workdir", "nan")
    assert run(*options, "--workdir", "skip", "--on-nan", "skip") == 0
    text = capsys.readouterr().out
    assert "    3/3      nan      nan%" in text
    assert "4 of 4 updates skipped in epoch 3/3" in text
    shutil.copytree("skip", "same")
    assert run("--compare", "skip", "same") == 0
    assert "NaN" not in Path("skip/metrics.jsonl").read_text()
    assert [row["loss"] for row in read_metrics(Workdir("skip")) if row["kind"] == "train"][-1] is None


def test_a_run_on_a_folder_resumes_from_anywhere_and_where_the_folder_has_moved(monkeypatch, capsys):
    make_folder()
    assert run("digits", *OPTIONS, "--data", "folder:images", "--workdir", "here") == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("--resume", "--workdir", "../here") == 0
    Path("../images").rename("moved")
    with pytest.raises(UserError, match="images"):
        run("--resume", "--workdir", "../here")
    assert run("--resume", "--workdir", "../here", "--data", "folder:moved") == 0
    assert "resumed after step 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--data folder: there, digits here"):
        run("--resume", "--workdir", "../here", "--data", "digits")


def test_out_of_memory_names_a_batch_that_fits(monkeypatch):
    def refuse(self, state, batch, step):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99999999999 bytes."
        )

    monkeypatch.setattr(loop.Run, "_first_step", refuse)
    with pytest.raises(UserError, match="a batch of 16 does not fit in the memory of cpu; use a smaller --batch-size"):
        run("digits", *OPTIONS)
    # 10 GB of state and 60 GB for 256 images, on 40 GB less a tenth: 26 / 60 of the batch, in multiples of 8.
    assert memory.batch_that_fits(256, 8, fixed=10, per_batch=60, limit=40) == 104
    assert memory.batch_that_fits(256, 8, fixed=50, per_batch=60, limit=40) == 0


def test_a_start_that_fails_leaves_the_workdir_free():
    impossible = ["--image-size", "1", "--batch-size", "1", "--train-transform.size", "1"]
    with pytest.raises(UserError, match=r"cannot train on images of shape \(1, 1, 1, 1\): .* more than one value"):
        run("digits", *OPTIONS, *impossible, "--workdir", "again")
    assert not Path("again").exists()


def test_a_full_disk(monkeypatch):
    def full(self, *args, **values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    with pytest.raises(UserError, match="No space left on device.*--resume"):
        run("digits", *OPTIONS)


def test_a_disk_too_full_for_the_weights(monkeypatch):
    written = best.write_checkpoint

    def full(path, tensors, metadata):
        if metadata["step"] != "4":
            raise ParityError(f"cannot write {path}: No space left on device")
        written(path, tensors, metadata)

    monkeypatch.setattr(best, "write_checkpoint", full)
    monkeypatch.setattr(loop.Run, "_seconds", lambda self: 0.0)
    better = iter([0.1, 0.2, 0.3])
    evaluate = setup.Setup.evaluate.func

    def improving(self):
        real = evaluate(self)
        return lambda *batches: dataclasses.replace(real(*batches), accuracy=next(better))

    monkeypatch.setattr(setup.Setup, "evaluate", property(improving))
    with pytest.raises(
        UserError, match=r"cannot write .*best.safetensors: No space .*; the checkpoint of step 4 is intact"
    ):
        run("digits", *OPTIONS)


def test_profile():
    assert run("digits", *OPTIONS, "--epochs", "6", "--profile", "--workdir", "profiled") == 0
    assert list(Path("profiled/profile").rglob("*.xplane.pb"))
