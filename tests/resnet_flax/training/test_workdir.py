"""Workdirs: one run each, claimed, locked, and resumed only with the same settings and data."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from parity import ParityError
from resnet_flax.errors import UserError
from resnet_flax.training import loop, workdir
from resnet_flax.training.config import ScheduleConfig
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.saved_config import OF_A_HOST, as_json, differences, from_json
from resnet_flax.training.workdir import Workdir
from tests.resnet_flax.training.small import OPTIONS, make_folder, run, use_small_network


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


def test_workdirs_are_kept_apart():
    assert run("digits", *OPTIONS, "--workdir", "one") == 0
    with pytest.raises(UserError, match="one already has a run; resume it"):
        run("digits", *OPTIONS, "--workdir", "one")
    with pytest.raises(UserError, match="other settings .--learning-rate 0.002 there, 0.1 here"):
        run("--resume", "--workdir", "one", "--learning-rate", "0.1")
    with pytest.raises(UserError, match="other settings .recipe digits there, cifar10 here; "):
        run("cifar10", "--resume", "--workdir", "one", *OPTIONS)
    with pytest.raises(UserError, match="nothing to resume: two has no run"):
        run("--resume", "--workdir", "two")
    with pytest.raises(UserError, match="nothing to resume"):
        run("--resume")
    assert run("--resume", "--workdir", "one", "--keep", "1") == 0  # how it is run may change


def test_hosts_share_a_workdir():
    config = RECIPES["digits"].config
    with pytest.raises(UserError, match="--distributed needs a --workdir that all hosts share"):
        workdir.choose_workdir(replace(config, run=replace(config.run, distributed=True)))


def test_a_workdir_has_one_run_at_a_time():
    assert run("digits", *OPTIONS, "--workdir", "one") == 0
    with Workdir("one").locked(), pytest.raises(UserError, match="another process is training in one"):
        run("--resume", "--workdir", "one")
    assert run("--resume", "--workdir", "one") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train: (train / "a" / "7.png").unlink(), "16 images then, 15 now"),
        (lambda train: shutil.copytree(train / "a", train / "c"), "16 images then, 24 now; new classes: c"),
        (lambda train: (train / "b").rename(train / "z"), "missing classes: b; new classes: z"),
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
    with pytest.raises(UserError, match=f"has changed since the run in here started .{message}.; restore it, or start"):
        run("--resume", "--workdir", "here")
    assert {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()} == before


def test_a_workdir_taken_since_it_was_chosen(monkeypatch):
    """Two runs started at the same time choose the same one, and only one gets it."""
    chosen = workdir.choose_workdir

    def slow(config):
        config, here = chosen(config)
        here.create()
        here.config.write_text("the other's")
        return config, here

    monkeypatch.setattr(loop, "choose_workdir", slow)
    with pytest.raises(UserError, match="another run has just claimed runs/digits-1"):
        run("digits", *OPTIONS)
    assert Path("runs/digits-1/config.json").read_text() == "the other's"


def test_a_full_disk_leaves_no_half_configuration(monkeypatch):
    written = Path.write_text

    def full(path, text, **options):
        if path.name != "config.json":
            return written(path, text, **options)
        written(path, text[:50], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot write full/config.json: No space left on device; choose another"):
        run("digits", *OPTIONS, "--workdir", "full")
    assert not Path("full").exists()


def test_checkpoints_without_their_configuration_are_not_taken_for_those_of_a_new_run():
    Path("here/checkpoints/12").mkdir(parents=True)
    with pytest.raises(UserError, match=r"here has checkpoints .the last of step 12. and no config.json; restore that"):
        run("digits", *OPTIONS, "--workdir", "here")


DAMAGE = {
    "empty": lambda text: b"",
    "cut off": lambda text: text[: len(text) // 2],
    "binary": lambda text: b"\xff\xfe\x00",
    "deep": lambda text: b"[" * 100_000,
    "no object": lambda text: b"5",
    "nothing in it": lambda text: b"{}",
    "no settings": lambda text: b'{"config": [1]}',
    "another type": lambda text: text.replace(b'"batch_size": 16', b'"batch_size": "16"'),
    "no group": lambda text: text.replace(b'"schedule": {', b'"schedule": 3, "x": {'),
    "no such transform": lambda text: text.replace(b'"type": "EvaluationTransform"', b'"type": "os.system"'),
    "no such choice": lambda text: text.replace(b'"dtype": "float32"', b'"dtype": "int3"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_configuration_is_one_sentence(damage):
    here = Workdir("here")
    here.create()
    text = json.dumps({"config": as_json(replace(RECIPES["digits"].config, batch_size=16))}, indent=2).encode()
    here.config.write_bytes(damaged := damage(text))
    assert damaged != text
    with pytest.raises(
        UserError, match=r"here/config.json is damaged \(.*\); restore it from a copy, or start a new run"
    ):
        run("--resume", "--workdir", "here")
    assert here.config.read_bytes() == damaged


def test_data_in_the_configuration_that_is_damaged():
    assert run("digits", *OPTIONS, "--workdir", "here", "--epochs", "1") == 0
    content = json.loads(Path("here/config.json").read_text())
    for data in (5, {}, {"images": "x", "class_names": []}, {"images": 64, "class_names": None}):
        Path("here/config.json").write_text(json.dumps({**content, "data": data}))
        with pytest.raises(UserError, match='is damaged .its "data" is not'):
            run("--resume", "--workdir", "here")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name):
    assert run("digits", *OPTIONS, "--workdir", "here", "--epochs", "1") == 0
    Path("here", name).unlink()
    os.mkfifo(Path("here", name))
    with pytest.raises(UserError, match=rf"here/{name} cannot be read: it is a named pipe, not a file"):
        run("--resume", "--workdir", "here")


def test_what_may_differ_between_processes_and_between_hosts():
    config = RECIPES["digits"].config
    other = replace(config, run=replace(config.run, patience=3, workers=2), schedule=replace(config.schedule, epochs=7))
    assert differences(config, other) == []
    assert [row.split()[0] for row in differences(config, other, OF_A_HOST)] == ["--epochs", "--patience"]


def test_the_saved_configuration_is_the_one_that_was_given():
    config = RECIPES["imagenet_v2"].config
    assert from_json(json.loads(json.dumps(as_json(config)))) == config


def test_configurations_of_earlier_versions():
    """A field that is gone is ignored where it did not matter, a schedule that is gone has its equivalent."""
    config = replace(RECIPES["digits"].config, schedule=ScheduleConfig(schedule="poly", poly_power=1.0))
    saved = json.loads(json.dumps(as_json(config)))
    saved["optimizer"]["decoupled_decay"] = None
    saved["schedule"] |= {"schedule": "linear", "poly_power": 2.0}
    assert from_json(saved) == config
    saved["optimizer"]["decoupled_decay"] = True
    with pytest.raises(UserError, match="decoupled_decay = True, which this version does not support"):
        from_json(saved)


def test_a_workdir_that_cannot_be_made():
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot create the directory file/run: Not a directory; choose another"):
        run("digits", *OPTIONS, "--workdir", "file/run")


def test_a_run_that_was_moved_goes_on_where_it_is():
    assert run("digits", *OPTIONS) == 0
    Path("runs/digits-1").rename("runs/good")
    assert run("--resume") == 0
    assert [path.name for path in Path("runs").iterdir()] == ["good"]


def test_a_name_that_looks_like_a_pattern():
    with pytest.raises(
        ParityError, match=r"Orbax cannot read a checkpoint from a path with \[: a\[b\]"
    ):  # Orbax can write it, but not read it
        run("digits", *OPTIONS, "--workdir", "a[b]")
    with pytest.raises(ParityError, match="Orbax cannot write to a path that is not UTF-8: a\udcff"):
        run("digits", *OPTIONS, "--workdir", "a\udcff")
