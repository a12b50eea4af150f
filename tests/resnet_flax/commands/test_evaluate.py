"""`train.py --evaluate`: the weights that are given, on images prepared as they or the command line say."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.commands import train as command
from resnet_flax.data import EvaluationTransform, open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.source import SourceOptions
from resnet_flax.errors import UserError
from resnet_flax.models import build_model
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.views import Crops
from resnet_flax.weights.metadata import metadata_of
from tests.numerics import assert_as_exact_as


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return command.main([*arguments])


def test_evaluation_of_weights(capsys):
    model = build_model("resnet18", num_classes=7, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    write_checkpoint("w.safetensors", to_torch(model), {})
    options = ["--evaluate", "--weights", "w.safetensors", "--image-size", "8", "--mean", "0.4", "--std", "0.3"]
    with pytest.raises(UserError, match="w.safetensors has 7 classes and digits has 10"):
        run(*options)
    assert run(*options, "--data", "synthetic:8x8x1:7", "--batch-size", "4", "--workdir", "out") == 0
    text = capsys.readouterr().out
    assert "over 7 images" in text
    result = json.loads(Path("out/evaluation.json").read_text())
    assert Path("out/confusion.png").exists()

    test = command.parse([*options, "--data", "synthetic:8x8x1:7"])
    source = open_source(test.data.data, "test")
    images = jnp.stack([jnp.asarray(source[i]["image"]) for i in range(7)])
    graphdef, arrays = nnx.split(model)

    def logits_of(x, arrays):
        return nnx.merge(graphdef, arrays)((x / 255 - 0.4) / 0.3)

    def loss(data, arrays):
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(data[0], arrays), data[1]).mean()

    labels = np.arange(7)
    assert result["accuracy"] == (jax.jit(logits_of)(images, arrays).argmax(1) == labels).mean()
    assert_as_exact_as(result["loss"], jax.jit(loss), (images.astype(jnp.float32), labels), arrays)
    assert result["count"] == 7
    assert (result["split"], result["origin"]) == ("test", "the test split of synthetic:8x8x1:7")
    assert result["recall"] == result["per_class"]

    # Weights without preprocessing use the recipe's.
    options = ["--evaluate", "--weights", "w.safetensors", "--data", "synthetic:8x8x1:7", "--batch-size", "4"]
    assert run(*options, "--workdir", "preset") == 0
    preset = RECIPES["digits"].config.data
    explicit = ["--mean", str(preset.mean[0] + 1e-6), "--std", str(preset.std[0]), "--workdir", "explicit"]
    assert run(*options, *explicit) == 0
    losses = [json.loads(Path(name, "evaluation.json").read_text())["loss"] for name in ("preset", "explicit")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_default_recipe_says_nothing_about_other_peoples_data(capsys):
    model = build_model("resnet18", num_classes=7, rngs=nnx.Rngs(0))
    write_checkpoint("w.safetensors", to_torch(model), {})
    options = ["--evaluate", "--weights", "w.safetensors", "--data", "synthetic:8x8x3:7", "--batch-size", "7"]
    used = {
        "": str(Preprocessing()),
        "imagenet_v1": str(Preprocessing(RECIPES["imagenet_v1"].config.data.eval_transform)),
    }
    for recipe, preprocessing in used.items():
        assert run(*filter(None, [recipe]), *options) == 0
        assert f"images: {preprocessing} (the weights came with none)" in capsys.readouterr().out


def test_what_evaluation_writes_goes_to_the_run_that_the_weights_are_of(capsys, tmp_path):
    Path("run").mkdir()
    model = build_model("resnet18", num_classes=7, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    write_checkpoint("run/best.safetensors", to_torch(model), {})
    options = ["--evaluate", "--data", "synthetic:8x8x1:7", "--image-size", "8", "--batch-size", "4"]
    Path("run/config.json").write_text("{}")
    assert run(*options, "--weights", "run/../run/best.safetensors") == 0
    text = capsys.readouterr().out
    assert "written: run/confusion.png, run/evaluation.json" in text
    assert "(the weights came with none)" in text
    assert "no preprocessing came with" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_evaluation_asks_the_weights_for_what_the_command_line_leaves_open(capsys):
    model = build_model("resnet18", num_classes=7, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    kept = Preprocessing(EvaluationTransform(12, 8), (0.25,), (0.3,))
    write_checkpoint("w[x].safetensors", to_torch(model), kept.to_metadata())  # a name that looks like markup
    options = ["--evaluate", "--weights", "w[x].safetensors", "--data", "synthetic:12x12x1:7", "--batch-size", "7"]
    for given, used in [
        (["--mean", "0.4"], replace(kept, mean=(0.4,))),
        (["--image-size", "16"], replace(kept, transform=EvaluationTransform(24, 16))),
        (["--eval-transform.crop-size", "10"], replace(kept, transform=EvaluationTransform(16, 10))),
    ]:
        assert run(*options, *given) == 0
        assert (
            "resnet18 from w[x].safetensors on synthetic:12x12x1:7 test (7 images), 1 x CPU\n"
            f"test is the test split of synthetic:12x12x1:7\nimages: {used}\n"
        ) in capsys.readouterr().out


@pytest.mark.parametrize("names", [[*"0123456"], [*"01x3456"]])
def test_other_names_of_classes_are_pointed_out(capsys, names):
    model = build_model("resnet18", num_classes=7, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    write_checkpoint("w.safetensors", to_torch(model), {"class_names": json.dumps(names)})
    assert run("--evaluate", "--weights", "w.safetensors", "--data", "synthetic:8x8x1:7", "--batch-size", "7") == 0
    text = capsys.readouterr().out
    assert ("note: class 2 is 'x' in w.safetensors and '2' in synthetic:8x8x1:7" in text) == ("x" in names)


def make_folders(folder, names, count=3):
    random = np.random.default_rng(1)
    for name in names:
        Path(folder, name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (12, 11, 3), np.uint8)).save(Path(folder, name, f"{number}.png"))


def test_a_whole_folder_of_some_classes_by_several_views(capsys):
    model = build_model("resnet18", num_classes=7, in_channels=3, small_images=True, rngs=nnx.Rngs(3))
    preprocessing = Preprocessing(EvaluationTransform(10, 8), (0.4,) * 3, (0.3,) * 3)
    write_checkpoint("w.safetensors", to_torch(model), metadata_of("resnet18", preprocessing, tuple("gfedcba")))
    make_folders("images", "be")
    options = ["--evaluate", "--weights", "w.safetensors", "--data", "whole:images", "--batch-size", "4"]
    assert run(*options, "--tta", "ten_crop", "--workdir", "out") == 0
    text = capsys.readouterr().out
    assert "the 2 of whole:images are outputs of w.safetensors by their names; only these of its 7 count" in text
    assert "views: four corners, the centre, and the mirror image of each; their probabilities are averaged" in text
    assert "meaningless" not in text
    result = json.loads(Path("out/evaluation.json").read_text())
    source = open_source("whole:images", "val")
    assert (source.split, len(source), result["count"]) == ("test", 6, 6)
    views = np.stack([Crops(EvaluationTransform(10, 8))(source[i]["image"]) for i in range(6)])
    views = np.concatenate([views, views[:, :, :, ::-1]], 1).reshape(60, 8, 8, 3)
    logits = jax.jit(lambda x: model((x / 255 - 0.4) / 0.3))(views)[:, [5, 2]]  # b, e
    mean = jax.nn.softmax(logits).reshape(6, 10, 2).mean(1)
    assert result["loss"] == pytest.approx(-np.log(mean[np.arange(6), source.labels]).mean(), rel=1e-4)
    assert result["accuracy"] == (mean.argmax(1) == source.labels).mean()


def test_what_whole_folders_and_real_labels_refuse():
    make_folders("images", "be")
    with pytest.raises(UserError, match="^whole:.*images is one test split, for --evaluate or --split test; folder:"):
        run("--data", "whole:images")
    make_folders("splits/train", "be")
    make_folders("splits/val", "be")
    with pytest.raises(UserError, match="^splits has splits; give the folder of one of them to whole:DIR, or folder:"):
        open_source("whole:splits", "val")
    with pytest.raises(UserError, match="^--real-labels needs --evaluate"):
        run("--real-labels", "real.json")
    model = build_model("resnet18", num_classes=2, in_channels=3, small_images=True, rngs=nnx.Rngs(3))
    write_checkpoint("w.safetensors", to_torch(model), {})
    options = ["--evaluate", "--weights", "w.safetensors", "--data", "whole:images", "--real-labels", "real.json"]
    with pytest.raises(
        UserError, match="^--real-labels needs ImageNet's validation set .*; whole:images has 2 classes"
    ):
        run(*options)


def test_real_labels_of_the_validation_set(capsys):
    """A thousand class folders, four of them with an image whose labels real.json has."""
    model = build_model("resnet18", num_classes=1000, in_channels=3, small_images=True, rngs=nnx.Rngs(3))
    preprocessing = Preprocessing(EvaluationTransform(8, 8), (0.4,) * 3, (0.3,) * 3)
    write_checkpoint("w.safetensors", to_torch(model), metadata_of("resnet18", preprocessing))
    wnids = [f"n{number:08}" for number in range(1000)]
    for wnid in wnids:
        Path("val", wnid).mkdir(parents=True)
    random = np.random.default_rng(1)
    for place, number in ((0, 11), (5, 3), (9, 7), (999, 1)):
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(Path("val", wnids[place], f"ILSVRC2012_val_{number:08}.png"))
    source = open_source("whole:val", "val", options=SourceOptions(allow_empty=True))
    pixels = np.stack([source[i]["image"] for i in range(4)])
    guesses = jax.jit(lambda x: model((x / 255 - 0.4) / 0.3))(pixels).argmax(1).tolist()
    labels = [[0] for _ in range(50_000)]
    labels[10], labels[2], labels[6], labels[0] = [1, guesses[0]], [], [guesses[2] - 1], [guesses[3]]
    Path("real.json").write_text(json.dumps(labels))
    options = ["--evaluate", "--weights", "w.safetensors", "--data", "whole:val", "--allow-empty", "--batch-size", "3"]
    assert run(*options, "--real-labels", "real.json") == 0
    assert "ReaL accuracy 66.67% over 3 images (1 without labels skipped)" in capsys.readouterr().out
    assert json.loads(Path("evaluation.json").read_text())["real"] == {"accuracy": 2 / 3, "count": 3, "skipped": 1}
