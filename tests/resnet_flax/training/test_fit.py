"""Training and evaluation from Python: the loop of the command, its settings as keywords, its results as objects."""

import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import resnet_flax
from parity import to_torch
from resnet_flax.data import EvaluationTransform, Preprocessing, normalize, open_source
from resnet_flax.errors import UserError
from resnet_flax.models import BasicBlock, ResNet
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.settings import configured
from tests.resnet_flax.training.small import use_small_network

DATA = "synthetic:8x8x1:64"


def test_a_run_and_its_resumption(monkeypatch, tmp_path, capsys):
    use_small_network(monkeypatch, tmp_path)
    settings = {"data": DATA, "image_size": 8, "batch_size": 16, "workdir": "run"}
    result = resnet_flax.fit("resnet18", epochs=1, **settings)
    assert result.finished
    assert [row["epoch"] for row in result.history] == [1]
    assert result.weights.exists()
    assert result.curves.exists()
    assert result.metrics.exists()
    shown = capsys.readouterr().out
    assert "    1/1 " in shown
    assert str(result).startswith("finished: best test accuracy ")
    assert str(result).endswith(", in epoch 1: run/best.safetensors")
    assert "curves" not in str(result)  # the run has shown its files
    results = []
    others = {"epochs": 2, "resume": True, "quiet": True}
    thread = threading.Thread(target=lambda: results.append(resnet_flax.fit("resnet18", **settings, **others)))
    thread.start()  # where signals cannot be handled
    thread.join()
    assert [row["epoch"] for row in results[0].history] == [1, 2]
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="run already has a run; resume it"):
        resnet_flax.fit("resnet18", **settings)


def test_settings_are_the_options_of_the_command():
    config = configured("digits", {"learning_rate": 1, "no_decay": ["bias"], "workdir": Path("x"), "data": "idx:d"})
    assert config.optimizer.learning_rate == 1
    assert configured("digits", {"lr": 0.5, "wd": 0.25}).optimizer.learning_rate == 0.5
    assert config.optimizer.no_decay == ("bias",)
    assert config.run.workdir == Path("x")
    assert config.data.data == "idx:d"
    assert config.model == RECIPES["digits"].config.model
    transform = EvaluationTransform(12, 10)
    changed = configured("digits", {"train_transform": transform, "exif_orientation": True, "model": "resnet50"})
    assert changed.data.train_transform == transform
    assert changed.data.source.decoding.exif_orientation
    assert changed.model.name == "resnet50"


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("digits", {"learnig_rate": 1}, r"no setting named learnig_rate; did you mean learning_rate\?"),
        ("digits", {"recipe": "digits"}, "no setting named recipe"),
        ("digits", {"optimizer": "sgdd"}, "optimizer cannot be 'sgdd'; it is one of sgd, momentum, nesterov"),
        ("digits", {"epochs": "3"}, "epochs cannot be '3'; it is int"),
        ("digits", {"epochs": 2.5}, "epochs cannot be 2.5"),
        ("digits", {"train_transform": "none"}, "train_transform is one of resnet_flax.data's"),
        ("digitz", {}, "no recipe named 'digitz'; did you mean digits"),
    ],
)
def test_settings_that_do_not_exist(recipe, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        configured(recipe, settings)


@pytest.fixture(scope="module")
def network():
    return resnet_flax.create_model("test_resnet", num_classes=10, in_channels=1)


def test_a_network_that_does_not_fit_the_data(network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data, preprocessing = "synthetic:8x8x3:64", Preprocessing(EvaluationTransform(8, 8), (0.5,), (0.5,))
    with pytest.raises(UserError, match=r"the network has num_classes 10, but .* needs 64; create_model\(..., num"):
        resnet_flax.fit(network, data, image_size=8, batch_size=16, epochs=1, quiet=True)
    with pytest.raises(UserError, match="the network has 10 classes and .* has 64"):
        resnet_flax.evaluate(network, data, preprocessing=preprocessing)
    with pytest.raises(UserError, match="how the images are prepared is not known"):
        resnet_flax.evaluate(network, "digits")
    with pytest.raises(UserError, match="weights= and a network that has its own"):
        resnet_flax.fit(network, "digits", weights="DEFAULT")
    assert not list(tmp_path.iterdir())


def test_every_image_counts_once_in_eval_mode():
    model = ResNet(BasicBlock, (1,), channels=(4,), num_classes=10, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    preprocessing = Preprocessing(EvaluationTransform(None, None), (0.5,), (0.5,))
    result = resnet_flax.evaluate(model, "digits", split="test", batch_size=256, preprocessing=preprocessing)
    digits = open_source("digits", "test")
    assert result.count == result.confusion.sum() == len(digits)  # which is no multiple of the batch
    assert str(result).startswith(f"top-1 {result.accuracy:.2%}  top-5 ")
    assert not model.bn1.use_running_average  # left in train mode, as it was
    model.eval()
    images = normalize(np.stack([digits[index]["image"] for index in range(len(digits))]), (0.5,), (0.5,))
    predicted = np.asarray(jax.jit(model)(images)).argmax(1)
    assert result.accuracy == np.mean(predicted == digits.labels)


@pytest.mark.full
def test_a_network_is_where_training_starts_and_is_left_as_it_is(network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = to_torch(network)
    result = resnet_flax.fit(network, "digits", epochs=1, learning_rate=0.0, quiet=True)
    after = to_torch(result.best.model)
    assert before.keys() == after.keys()
    for name, value in to_torch(network).items():
        np.testing.assert_array_equal(value, before[name])
        if name.endswith((".weight", ".bias")):
            np.testing.assert_array_equal(after[name], value)
    again = resnet_flax.evaluate(result.weights, "digits", batch_size=50)
    assert again.accuracy == result.history[-1]["accuracy"]
