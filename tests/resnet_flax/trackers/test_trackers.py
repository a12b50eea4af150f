"""Trackers: what they are sent, found by name or entry point, absent, failing, and continued by a resumed run."""

import io
import json
import signal
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from parity.errors import MissingPackageError
from resnet_flax.errors import UserError
from resnet_flax.trackers.base import TrackedRun
from resnet_flax.trackers.registry import Trackers, find_trackers
from resnet_flax.training.metrics import Journal, read_metrics
from resnet_flax.training.workdir import Workdir
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network

THEIRS = '''
import json

class Fake:
    """Appends one line of JSON for each call, and fails at step FAILS."""

    where = "fake.jsonl"
    FAILS = None

    def __init__(self, run):
        if self.FAILS == "open":
            raise ConnectionError("no server")
        self.id = run.id or "run-7"
        self.add("open", run.id, run.project, run.name, run.step, run.settings["batch-size"])

    def add(self, *row):
        with open("fake.jsonl", "a") as file:
            file.write(json.dumps(row) + "\\n")

    def log(self, step, values):
        if step == self.FAILS:
            raise ConnectionError("the server is\\ngone")
        self.add(step, values)

    def close(self, *, finished):
        self.add("close", finished)
'''


@pytest.fixture
def theirs(monkeypatch, tmp_path):
    """A package of somebody else's that registers the tracker "fake"; returns its class."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    folder = tmp_path / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[resnet_flax.trackers]\nfake = theirs:Fake\nbroken = theirs:Absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    use_small_network(monkeypatch, tmp_path)
    yield find_trackers(["fake"])["fake"]
    sys.modules.pop("theirs", None)


def rows():
    return [json.loads(line) for line in Path("fake.jsonl").read_text().splitlines()]


def test_a_tracker_by_entry_point_gets_what_metrics_jsonl_has(theirs, capsys):
    assert run("digits", *OPTIONS, "--track", "fake", "--ema-decay", "0.5", "--workdir", "one") == 0
    assert "tracked by fake: fake.jsonl\n" in capsys.readouterr().out
    opened, *logged, closed = rows()
    assert opened == ["open", None, "digits", "one", 0, 16]
    assert closed == ["close", True]
    expected = [
        [
            row["step"],
            {
                f"{row['kind']}{'_ema' if row.get('weights') == 'ema' else ''}/{name}": value
                for name, value in row.items()
                if name not in ("kind", "step", "weights", "split", "epoch", "seconds")
            },
        ]
        for row in read_metrics(Workdir("one"))
    ]
    assert logged == expected
    assert {"train/loss", "evaluation/accuracy", "evaluation_ema/accuracy"} <= set().union(*(row[1] for row in logged))


def test_a_resumed_run_continues_the_tracked_one(theirs, monkeypatch):
    written = Journal.write

    def write(self, kind, step, **values):
        if (kind, step) == ("train", 6):
            signal.raise_signal(signal.SIGTERM)
        written(self, kind, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write)
        assert run("digits", *OPTIONS, "--track", "fake", "--workdir", "one") == 143
    assert rows()[-1] == ["close", False]
    assert json.loads(Path("one/trackers.json").read_text()) == {"fake": "run-7"}
    done = len(rows())
    assert run("--resume", "--workdir", "one") == 0  # the settings are those of the run, and so is --track
    opened = rows()[done]
    assert opened[1] == "run-7"
    assert opened[4] >= 6
    assert rows()[-1] == ["close", True]


def test_a_tracker_that_fails_never_costs_the_run(theirs, monkeypatch, capsys):
    monkeypatch.setattr(theirs, "FAILS", 5)
    assert run("digits", *OPTIONS, "--track", "fake", "--workdir", "one") == 0
    note = "note: fake has failed (ConnectionError: the server is gone); metrics.jsonl has every row\n"
    assert capsys.readouterr().out.count(note) == 1
    assert [row[0] for row in rows()] == ["open", 1, 2, 3, 4, 4]
    assert max(row["step"] for row in read_metrics(Workdir("one"))) == 12


def test_one_that_cannot_start_is_an_error_before_training_and_a_note_after(theirs, monkeypatch, capsys):
    monkeypatch.setattr(theirs, "FAILS", "open")
    with pytest.raises(
        UserError, match=r"^--track fake cannot start: ConnectionError: no server; mend that, or remove"
    ):
        run("digits", *OPTIONS, "--track", "fake", "--workdir", "one")
    assert not Path("one").exists()
    assert run("digits", *OPTIONS, "--workdir", "one") == 0
    assert run("--resume", "--workdir", "one", "--epochs", "4", "--track", "fake") == 0
    assert "note: fake cannot continue (ConnectionError: no server)" in capsys.readouterr().out


def test_names_that_are_no_tracker(theirs, monkeypatch):
    with pytest.raises(UserError, match=r"^no tracker 'wandbb'; did you mean wandb\?$"):
        find_trackers(["wandbb"])
    with pytest.raises(UserError, match=r"^no tracker 'x'; there are tensorboard, trackio, wandb, mlflow, .*fake"):
        find_trackers(["x"])
    with pytest.raises(UserError, match=r"^--track broken \(theirs:Absent\) cannot be loaded: "):
        find_trackers(["broken"])
    assert list(find_trackers(["fake", "tensorboard", "fake"])) == ["tensorboard", "fake"]


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_an_absent_package_is_named_with_its_extra_before_anything_is_written(name, monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)
    monkeypatch.delitem(sys.modules, f"resnet_flax.trackers.{name}", raising=False)
    for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    sentence = rf"^--track {name} needs {name}.*: pip install 'resnet-flax\[{name}\]'$"
    with pytest.raises(MissingPackageError, match=sentence):
        run("digits", *OPTIONS, "--track", name)
    assert not list(tmp_path.iterdir())


def track(name, workdir, steps, *, start=0, notes=None):
    """Tracks train/loss = the step, in a run of this name; returns the trackers' places."""
    say = pytest.fail if notes is None else notes.append
    trackers = Trackers(find_trackers([name]), TrackedRun(workdir, "ours", workdir.name, {"batch-size": 4}, start), say)
    for step in steps:
        trackers.log(step, {"train/loss": float(step)})
    where = trackers.where
    trackers.close(finished=True)
    return where


def test_tensorboard_shows_a_killed_and_resumed_run_once(tmp_path, monkeypatch):
    track("tensorboard", tmp_path, (1, 2, 3))
    later = time.time() + 5  # the names of its files have the second
    monkeypatch.setattr("time.time", lambda: later)
    track("tensorboard", tmp_path, (3, 4), start=2)  # killed after step 3, whose checkpoint was that of step 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_ends_tensorboard_alone(tmp_path):
    notes = []
    run = TrackedRun(tmp_path, "ours", "one", {})
    trackers = Trackers(find_trackers([]), run, notes.append)
    with Path("/dev/full").open("wb", buffering=0) as device:
        records = trackers._open["tensorboard"]._records
        records.close()
        records._writer = device
        trackers.log(1, {"evaluation/loss": 1.0})
        trackers.close(finished=True)
    (note,) = notes
    assert note.startswith("note: tensorboard has failed (OSError: ")
    assert "No space left" in note


def test_tensorboard_interface():
    """Undocumented in TensorBoard: what resnet_flax.trackers.tensorboard uses of it."""
    assert {"write", "flush", "close"} <= vars(RecordWriter).keys()
    assert {"Event", "SessionLog"} <= vars(event_pb2).keys()


def test_a_damaged_list_of_ids_is_as_none(tmp_path):
    (tmp_path / "trackers.json").write_bytes(b"\xff[")
    assert "tensorboard" in track("tensorboard", tmp_path, (1,))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_both_parts_of_a_run(monkeypatch, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "one"
    workdir.mkdir()
    track("mlflow", workdir, (1, 2))
    assert (
        track("mlflow", workdir, (3,), start=2)["mlflow"]
        == f"mlflow ui --backend-store-uri sqlite:///{workdir}/mlflow.db"
    )
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{workdir}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params == {"batch-size": "4"}
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(row.step, row.value) for row in history] == [(1, 1), (2, 2), (3, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_both_parts_under_one_id(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "one"
    workdir.mkdir()
    first = track("wandb", workdir, (1, 2))["wandb"]
    second = track("wandb", workdir, (3,), start=2)["wandb"]
    own = json.loads((workdir / "trackers.json").read_text())["wandb"]
    assert first.startswith(f"wandb sync {workdir}/wandb/offline-run-")
    assert first.endswith(own)
    assert second.endswith(own)
    assert len(list((workdir / "wandb").glob(f"offline-run-*-{own}/*.wandb"))) >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_key_is_a_sentence(monkeypatch, tmp_path):
    pytest.importorskip("wandb").teardown()  # it keeps the mode of the process
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match=r"^--track wandb cannot start: UsageError: .*wandb login"):
        track("wandb", tmp_path, ())


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_both_parts_of_a_run(monkeypatch, tmp_path):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    workdir = tmp_path / "one"
    workdir.mkdir()
    track("trackio", workdir, (1, 2))
    track("trackio", workdir, (3,), start=2)
    own = json.loads((workdir / "trackers.json").read_text())["trackio"]
    assert own.startswith("one-")
    logs = SQLiteStorage.get_logs("ours", own)
    assert [(row["step"], row["train/loss"]) for row in logs] == [(1, 1), (2, 2), (3, 3)]
