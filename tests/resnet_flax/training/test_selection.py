"""What a run is evaluated on, how its best weights are chosen, and when it stops early."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.training.evaluation import Evaluation
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.setup import Setup
from resnet_flax.training.workdir import Workdir
from resnet_flax.weights.metadata import Metadata
from tests.resnet_flax.training.small import OPTIONS, make_folder, run, use_small_network

IMAGES = [*OPTIONS, "--data", "folder:images", "--batch-size", "8", "--mean", "0.5", "--std", "0.5"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)


def evaluations():
    return [row for row in read_metrics(Workdir("runs/digits-1")) if row["kind"] == "evaluation"]


def test_a_run_with_three_splits_never_opens_the_test_set(monkeypatch, capsys):
    make_folder()
    make_folder("other")
    Path("images/test").rename("images/val")
    Path("other/test").rename("images/test")
    scandir, opened = os.scandir, os.open

    def guard(function):
        def guarded(path, *arguments, **options):
            assert "images/test" not in str(path), f"{path} was opened"
            return function(path, *arguments, **options)

        return guarded

    monkeypatch.setattr(os, "scandir", guard(scandir))
    monkeypatch.setattr(os, "open", guard(opened))
    assert run("digits", *IMAGES, "--epochs", "1") == 0
    text = capsys.readouterr().out
    assert "16 training and 16 val images" in text
    assert f"val, which chooses the best weights: {Path('images/val').absolute()}" in text
    assert "val accuracy" in text
    assert "test" not in text.replace(str(Path.cwd()), "")
    assert [row["split"] for row in evaluations()] == ["val"]
    with pytest.raises(AssertionError, match="images/test was opened"):
        run("digits", *IMAGES, "--epochs", "1", "--split-by", "test")


def test_selection_on_the_test_set_is_said(capsys):
    make_folder()
    assert run("digits", *IMAGES, "--epochs", "1") == 0
    assert "has no validation split with labels; its test split is used" in " ".join(capsys.readouterr().out.split())
    assert run("digits", *IMAGES, "--epochs", "1", "--split-by", "0.25") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "12 training and 4 val images" in text
    assert "25% of each class of" in text


SCRIPTED = [(0.5, 3.0), (0.7, 2.0), (0.6, 1.0), (0.6, 1.5), (0.6, 1.5)]  # (accuracy, loss) of each epoch


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations with the results of SCRIPTED, one after the other."""
    results = iter(SCRIPTED)

    def evaluate(self):
        def evaluated(arrays, batches):
            accuracy, loss = next(results)
            return Evaluation(10, loss, accuracy, 1.0, np.eye(64, dtype=int))

        return evaluated

    monkeypatch.setattr(Setup, "evaluate", property(evaluate))


@pytest.mark.parametrize(("best_by", "step"), [("accuracy", "8"), ("loss", "12"), ("top5", "4")])
def test_the_best_weights_are_those_of_the_chosen_figure(scripted, best_by, step):
    assert run("digits", *OPTIONS, "--best-by", best_by) == 0
    assert read_checkpoint("runs/digits-1/best.safetensors").metadata["step"] == step


def test_patience(scripted, capsys):
    assert run("digits", *OPTIONS, "--epochs", "20", "--patience", "2") == 0
    assert [row["step"] for row in evaluations()] == [4, 8, 12, 16]  # the second was the best
    text = capsys.readouterr().out
    assert "accuracy 60.00% (best 70.00%)" in text
    assert "stopped after 4 of 20 epochs: accuracy has not improved for 2 epochs; to continue:\n" in text
    assert run("--resume", "--workdir", "runs/digits-1") == 0  # it has ended, and ends again at once
    assert len(evaluations()) == 4
    assert run("--resume", "--workdir", "runs/digits-1", "--patience", "3") == 0
    assert [row["step"] for row in evaluations()] == [4, 8, 12, 16, 20]


def test_class_weights_reach_the_loss(capsys):
    options = [*OPTIONS, "--data", "synthetic:8x8x1:16", "--epochs", "1"]
    Path("w.txt").write_text("\n".join(["0"] * 16))
    with pytest.raises(UserError, match=r"--class-weights .*w\.txt: weights must be"):
        run("digits", *options, "--class-weights", "w.txt")
    Path("w.txt").write_text("\n".join(["1"] + ["0"] * 15))
    assert run("digits", *options, "--class-weights", "w.txt") == 0
    assert run("digits", *options) == 0
    weighted, plain = (
        next(row["loss"] for row in read_metrics(Workdir(f"runs/digits-{number}")) if row["kind"] == "train")
        for number in (1, 2)
    )
    assert abs(weighted - plain) > 1e-3


def test_how_images_are_read_is_kept_with_the_weights():
    make_folder()
    assert run("digits", *IMAGES, "--epochs", "1", "--exif-orientation", "--scale-16-bit") == 0
    kept = Metadata(read_checkpoint("runs/digits-1/best.safetensors").metadata).preprocessing
    assert (kept.decoding.exif_orientation, kept.decoding.scale_16_bit) == (True, True)
    again = Preprocessing.from_metadata(kept.to_metadata())
    assert again == replace(kept, decoding=again.decoding)
    assert json.loads(kept.to_metadata()["decoding"]) == {"exif_orientation": True, "scale_16_bit": True}


BAD = {
    "eval_transform": [
        *("{", "5", '{"evil": 1}', '{"resize_size": -5}', '{"crop_size": true}', '{"crop_size": 1e3}'),
        *('{"interpolation": "__class__"}', '{"resize_size": "a"}', "[" * 100_000, '{"crop_size": 1000000000}'),
    ],
    "mean": ['["a"]', "0.5", "[]", "[NaN]", "[1e999]", "[true]", "null", "[1, 2]"],
    "std": ["[0.0]", "[-1]", "[Infinity]", "{}"],
    "class_names": ["{not json", "5", "[1, 2]", '{"a": 0}', '"ab"'],
    "decoding": ["[]", '{"max_pixels": 5}', '{"exif_orientation": 1}'],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_metadata_is_what_its_schema_allows(key, value):
    metadata = Metadata({**Preprocessing().to_metadata(), "class_names": '["a"]', key: value})
    with pytest.raises(ValueError, match="in the metadata of the weights cannot be read"):
        assert metadata.preprocessing == metadata.class_names
