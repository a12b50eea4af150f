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

from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.commands import train as command
from resnet_flax.data import EvaluationTransform, open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import build_model
from resnet_flax.training.recipes import RECIPES
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
