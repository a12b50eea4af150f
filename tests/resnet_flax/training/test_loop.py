"""The command: runs, interruptions, resuming, guards. A tiny network stands in for the ResNet."""

import errno
import gc
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from PIL import Image

from parity import ParityError
from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.commands import train as command
from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm, Conv, Linear
from resnet_flax.training import loop, memory, setup, workdir
from resnet_flax.training.metrics import Journal, read_metrics
from resnet_flax.training.recipes import RECIPES
from tests import ROOT

OPTIONS = [
    "--data",
    "synthetic:8x8x1:64",
    "--image-size",
    "8",
    "--batch-size",
    "16",
    "--epochs",
    "3",
    "--log-every",
    "1",
]
STEPS = 12


# Where reading a damaged file fails, Orbax leaves coroutines behind that nobody waits for; gc brings it up here.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


class Small(nnx.Module):
    small_images = True

    def __init__(self, num_classes, in_channels, rngs):
        self.conv1 = Conv(in_channels, 8, 3, stride=2, padding=1, rngs=rngs)
        self.bn1 = BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.fc = Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.drop(nnx.relu(self.bn1(self.conv1(x)))).mean((1, 2)))


def create(name, *, num_classes, in_channels, rngs, **options):
    return Small(num_classes, in_channels, rngs)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "create_model", create)
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return command.main([*arguments])


def final_state(folder):
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    state = ocp.StandardCheckpointer().restore((last / "state").absolute())
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(state)}


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


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


def test_a_run_leaves_everything_behind(capsys):
    assert run("digits", *OPTIONS, "--ema-decay", "0.5") == 0
    folder = Path("runs/digits-1")
    text = capsys.readouterr().out
    for word in ("compiling", "epoch 3/3", "test accuracy", "best.safetensors", "metrics.jsonl", "curves.png"):
        assert word in text
    rows = read_metrics(folder)
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
def test_interrupted_runs_go_on_bit_for_bit(interrupt, capsys, monkeypatch, number, kind, step, status):
    options = [*OPTIONS, "--mixup", "0.2", "--ema-decay", "0.9"]
    assert run("digits", *options, "--workdir", "whole") == 0
    with monkeypatch.context():
        interrupt(kind, step, number)
        assert run("digits", *options, "--workdir", "stopped") == status
    text = capsys.readouterr().out
    assert "stopping behind this step" in text
    assert "python -m resnet_flax train --resume --workdir stopped" in text
    reached = max(row["step"] for row in read_metrics(Path("stopped")))
    assert step <= reached < STEPS
    interrupt(None, 0, 0)
    assert run("--resume", "--workdir", "stopped") == 0
    assert_same_state(final_state(Path("stopped")), final_state(Path("whole")))

    def kept(row):
        return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}

    assert [kept(row) for row in read_metrics(Path("stopped"))] == [kept(row) for row in read_metrics(Path("whole"))]


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
    assert first.startswith("stopping behind this step")
    assert second == "interrupted"


KILLED_WHILE_SAVING = """
import os, signal, sys
from resnet_flax.training import setup
from resnet_flax.training.checkpoints import Checkpoints
from tests import test_training_loop as tests

save = Checkpoints.save

def save_and_die(self, state, progress):
    save(self, state, progress)
    if int(state["step"]) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

setup.create_model, Checkpoints.save = tests.create, save_and_die
tests.command.main(sys.argv[1:])
"""


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit():
    """The small version of benchmarks/kill_resume.py."""
    options = ["digits", *OPTIONS, "--mixup", "0.2"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, *options, "--workdir", "killed"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Path("killed/checkpoints/4").is_dir()
    assert run(*options, "--workdir", "whole") == 0
    assert run("--resume", "--workdir", "killed") == 0
    assert_same_state(final_state(Path("killed")), final_state(Path("whole")))


def test_resuming_takes_the_run_before_a_damaged_checkpoint(caplog):
    assert run("digits", *OPTIONS, "--workdir", "whole") == 0
    assert run("digits", *OPTIONS, "--workdir", "damaged") == 0
    for path in Path("damaged/checkpoints/12/state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run("--resume", "--workdir", "damaged") == 0
    gc.collect()
    assert "skipped the damaged checkpoint of step 12" in caplog.text
    assert_same_state(final_state(Path("damaged")), final_state(Path("whole")))


def test_losses_that_are_not_finite(capsys):
    options = ["digits", *OPTIONS, "--optimizer", "sgd", "--learning-rate", "1e30", "--schedule", "constant"]
    with pytest.raises(UserError, match=r"of step \d+ is not finite .* learning rate 1e\+30\); there is no checkpoint"):
        run(*options, "--workdir", "nan")
    assert run(*options, "--workdir", "skip", "--on-nan", "skip") == 0
    assert "epoch 3/3  train nan nan%  4 of 4 updates skipped" in capsys.readouterr().out
    assert run("--compare", "skip", "skip") == 0
    assert "NaN" not in Path("skip/metrics.jsonl").read_text()
    assert [row["loss"] for row in read_metrics(Path("skip")) if row["kind"] == "train"][-1] is None


def test_workdirs_are_kept_apart():
    assert run("digits", *OPTIONS, "--workdir", "one") == 0
    with pytest.raises(UserError, match="one holds another run"):
        run("digits", *OPTIONS, "--workdir", "one")
    with pytest.raises(UserError, match="other settings .--learning-rate 0.002 there, 0.1 here"):
        run("--resume", "--workdir", "one", "--learning-rate", "0.1")
    with pytest.raises(UserError, match="other settings .recipe digits there, cifar10 here; "):
        run("cifar10", "--resume", "--workdir", "one", *OPTIONS)
    with pytest.raises(UserError, match="nothing to resume: two holds no run"):
        run("--resume", "--workdir", "two")
    with pytest.raises(UserError, match="nothing to resume"):
        run("--resume")
    assert run("--resume", "--workdir", "one", "--keep", "1") == 0  # how it is run may change


def test_a_workdir_has_one_run_at_a_time():
    assert run("digits", *OPTIONS, "--workdir", "one") == 0
    with workdir.locked(Path("one")), pytest.raises(UserError, match="another process is training in one"):
        run("--resume", "--workdir", "one")
    assert run("--resume", "--workdir", "one") == 0


def make_folder(folder="images", classes="ab"):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            Path(folder, split, name).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(random.integers(0, 256, (8, 8), np.uint8))
                picture.save(Path(folder, split, name, f"{i}.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train: (train / "a" / "7.png").unlink(), "16 images then, 15 now"),
        (lambda train: shutil.copytree(train / "a", train / "c"), "16 images then, 24 now; new: c"),
        (lambda train: (train / "b").rename(train / "z"), "no longer there: b; new: z"),
    ],
)
def test_resuming_with_other_data_is_refused_and_changes_nothing(change, message):
    make_folder()
    assert run("digits", *OPTIONS, "--data", "folder:images", "--batch-size", "8", "--workdir", "here") == 0
    before = {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()}
    train = Path("images/train")
    change(train)
    for folder in train.iterdir():  # the test set follows
        (train.parent / "test" / folder.name).mkdir(exist_ok=True)
        shutil.copy(next(folder.iterdir()), train.parent / "test" / folder.name)
    if not (train / "b").exists():
        shutil.rmtree(train.parent / "test" / "b")
    with pytest.raises(UserError, match=f"has changed since the run in here began .{message}.; restore it, or begin"):
        run("--resume", "--workdir", "here")
    assert {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()} == before


def test_one_class_is_none_to_tell_apart():
    make_folder(classes="a")
    with pytest.raises(UserError, match="images has one class only"):
        run("digits", *OPTIONS, "--data", "folder:images", "--batch-size", "8")


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
    assert "resumed behind step 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--data folder: there, digits here"):
        run("--resume", "--workdir", "../here", "--data", "digits")


def test_a_workdir_taken_since_it_was_chosen(monkeypatch):
    """Two runs begun together choose the same one, and only one gets it."""
    chosen = workdir.choose_workdir

    def slow(config):
        config = chosen(config)
        config.run.workdir.mkdir(parents=True)
        (config.run.workdir / "config.json").write_text("the other's")
        return config

    monkeypatch.setattr(loop, "choose_workdir", slow)
    with pytest.raises(UserError, match="digits-1 was taken by another run a moment ago"):
        run("digits", *OPTIONS)
    assert Path("runs/digits-1/config.json").read_text() == "the other's"


def test_a_full_disk_leaves_no_half_configuration(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def open_full(path, mode="r", *args, **options):
        file = opened(path, mode, *args, **options)
        if mode != "x":
            return file
        file.close()
        return Full()

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left"):
        run("digits", *OPTIONS, "--workdir", "full")
    assert not Path("full/config.json").exists()


def test_weights_for_large_images_where_small_ones_are_asked_for(monkeypatch):
    monkeypatch.setattr(setup, "create_model", lambda *args, **options: SimpleNamespace(small_images=False))
    with pytest.raises(UserError, match="w.pth has the stem for large images; add --no-small-images"):
        run("digits", *OPTIONS, "--weights", "w.pth", "--small-images")


def test_the_saved_configuration_is_the_one_that_was_given():
    config = RECIPES["imagenet_v2"].config
    saved = workdir.as_json(config)
    assert workdir._from_json(type(config)(), json.loads(json.dumps(saved))) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accumulate", "3"], "a batch of 16 cannot be split evenly over 1 device x 3 micro-batches"),
        (["--warmup-epochs", "3"], "--warmup-epochs 3 leaves nothing of --epochs 3"),
        (["--bce-threshold", "0.2"], "goes with --loss binary_cross_entropy"),
        (["--train-frozen-statistics"], "goes with --freeze"),
        (["--freeze", "conv2"], "'conv2' matches no parameter; did you mean conv1"),
        (["--std", "0"], "--std should be above 0, found 0.0"),
        (["--learning-rate", "nan"], "--learning-rate should be a number from 0 on, found nan"),
        (["--mean", "0.5", "0.5"], "--mean has 2 values, but the images of .* have 1 channel"),
        (["--batch-size", "65"], "holds 64 images, fewer than one batch"),
        (["--distributed"], "--distributed needs a --workdir"),
        (["--evaluate"], "--evaluate needs --weights"),
        (["--target", "h100"], "--target .* goes with --dry-run only"),
        (["--image-size", "0"], "--image-size should be at least 1, found 0"),
        *(
            ([f"--{name}", "-1"], f"--{name} should be at least 0, found -1")
            for name in ("seed", "workers", "skip-corrupt", "warmup-epochs", "train-transform.padding")
        ),
        *(
            ([f"--{name}", "0"], f"--{name} should be at least 1, found 0")
            for name in ("accumulate", "log-every", "keep", "checkpoint-every", "ema-every", "epochs", "repeats")
        ),
    ],
)
def test_settings_that_cannot_work(arguments, message):
    with pytest.raises(UserError, match=message):
        run("digits", *OPTIONS, *arguments)
    assert not Path("runs").exists()


def test_out_of_memory_names_a_batch_that_fits(monkeypatch):
    def refuse(self, state, batch):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99999999999 bytes."
        )

    monkeypatch.setattr(loop.Run, "_first_step", refuse)
    with pytest.raises(
        UserError, match="a batch of 16 does not fit into the memory of cpu; use a smaller --batch-size"
    ):
        run("digits", *OPTIONS)
    # 10 GB of state and 60 GB for 256 images, on 40 GB less a tenth: 26 / 60 of the batch, in multiples of 8.
    assert memory.batch_that_fits(256, 8, fixed=10, per_batch=60, limit=40) == 104
    assert memory.batch_that_fits(256, 8, fixed=50, per_batch=60, limit=40) == 0


def test_a_start_that_fails_leaves_the_workdir_free():
    impossible = ["--image-size", "1", "--batch-size", "1", "--train-transform.size", "1"]
    with pytest.raises(UserError, match=r"a step on images of \(1, 1, 1, 1\) is not possible: .* more than one value"):
        run("digits", *OPTIONS, *impossible, "--workdir", "again")
    assert not Path("again").exists()


def test_a_workdir_that_cannot_be_made():
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot make the directory file/run: Not a directory; choose another"):
        run("digits", *OPTIONS, "--workdir", "file/run")


def test_a_run_that_was_moved_goes_on_where_it_is():
    assert run("digits", *OPTIONS) == 0
    Path("runs/digits-1").rename("runs/good")
    assert run("--resume") == 0
    assert [path.name for path in Path("runs").iterdir()] == ["good"]


def test_a_name_that_looks_like_a_pattern():
    with pytest.raises(ParityError, match=r"under a name with \[: a\[b\]"):  # Orbax would write it and not read it
        run("digits", *OPTIONS, "--workdir", "a[b]")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("full", ["rows", "events"])
def test_a_full_disk_reaches_the_caller_once(tmp_path, full):
    journal = Journal(tmp_path, 0)
    with Path("/dev/full").open("wb", buffering=0) as device:
        if full == "rows":
            journal._file.close()
            journal._file = io.TextIOWrapper(device, write_through=True)
        else:
            journal._events._py_recordio_writer.close()
            journal._events._py_recordio_writer._writer = device
        with pytest.raises(OSError, match="No space left"):
            journal.write("evaluation", 1, loss=1.0)
        journal.close()


def test_a_full_disk(monkeypatch):
    def full(self, *args, **values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    with pytest.raises(UserError, match="No space left on device.*--resume"):
        run("digits", *OPTIONS)


def test_a_disk_too_full_for_the_weights(monkeypatch):
    written = loop.write_checkpoint

    def full(path, tensors, metadata):
        if metadata["step"] != "4":
            raise ParityError(f"cannot write {path}: No space left on device")
        written(path, tensors, metadata)

    monkeypatch.setattr(loop, "write_checkpoint", full)
    monkeypatch.setattr(loop.Run, "_seconds", lambda self: 0.0)
    better = iter([0.1, 0.2, 0.3])
    evaluate = setup.Setup.evaluate.func

    def improving(self):
        real = evaluate(self)
        return lambda *batches: replace_accuracy(real(*batches), next(better))

    def replace_accuracy(result, value):
        return SimpleNamespace(loss=result.loss, top5=result.top5, accuracy=value)

    monkeypatch.setattr(setup.Setup, "evaluate", property(improving))
    with pytest.raises(
        UserError, match=r"cannot write .*best.safetensors: No space .*; the checkpoint of step 4 is intact"
    ):
        run("digits", *OPTIONS)


def test_recipes_are_listed_and_misspelt_names_answered(capsys):
    assert run("--list") == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == list(RECIPES)
    assert run("--show", "imagenet_v2") == 0
    assert "--ema-decay 0.9989" in capsys.readouterr().out
    with pytest.raises(UserError, match="no recipe named 'imagenet_v3'; did you mean imagenet_v2"):
        run("imagenet_v3")
    with pytest.raises(SystemExit) as stop:
        run("digits", "--learnig-rate", "1")
    assert stop.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_another_batch_size_reminds_of_the_rule(capsys):
    run("digits", *OPTIONS)
    assert "a batch of 16 where the recipe has 64, at the same learning rate" in capsys.readouterr().out


def test_comparison(capsys):
    for name in ("one", "two"):
        run("digits", *OPTIONS, "--workdir", name)
    assert run("--compare", "one", "two") == 0
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="three holds no run"):
        run("--compare", "one", "three")


def test_profile():
    assert run("digits", *OPTIONS, "--epochs", "6", "--profile", "--workdir", "profiled") == 0
    assert list(Path("profiled/profile").rglob("*.xplane.pb"))


PAGE_FAULTS = """
import sys
import jax, jax.numpy as jnp
from resource import RUSAGE_SELF, getrusage
from resnet_flax.training.config import RunConfig
from resnet_flax.training.devices import open_devices

if sys.argv[1] == "run":
    open_devices(RunConfig(device="cpu"))
step = jax.jit(lambda x: ((x + 1) @ (x + 1).T[:, :16]).sum())  # a product needs all of x + 1, 128 MB
x = jnp.ones((4_000, 8_000))
faults = []
for _ in range(24):
    before = getrusage(RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(getrusage(RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # the heap still grows now and then, until a hole of the right size stays
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_run_on_a_cpu_keeps_its_memory():
    faults = {
        kind: int(subprocess.check_output([sys.executable, "-c", PAGE_FAULTS, kind], cwd=ROOT, text=True))
        for kind in ("run", "plain")
    }
    assert faults["run"] < faults["plain"] / 10


def test_no_gpu_is_one_sentence():
    found = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--device", "gpu"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"},
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: --device gpu, but JAX finds no GPU here")
    assert "Traceback" not in found.stderr
