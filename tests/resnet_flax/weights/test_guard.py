"""The first norm's inputs against what its weights were trained with."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import parity
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.commands import train as command
from resnet_flax.commands.common import run_on_images
from resnet_flax.data.on_device import normalize
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.inference import find_images
from resnet_flax.layers import GroupNorm
from resnet_flax.models import build_model
from resnet_flax.weights.guard import SEVERAL, doubt
from resnet_flax.weights.load import load_pretrained
from resnet_flax.weights.pretrained import Pretrained
from tests.parity.fingerprints.networks import patches
from tests.resnet_flax.training import small

PIXELS, UNIT = ((0.0,), (1 / 255,)), ((0.0,), (1.0,))
IMAGENET = (Preprocessing().mean, Preprocessing().std)


def network(name="resnet18", constants=IMAGENET, channels=3, **options):
    """One whose first norm has the statistics of photographs with these constants."""
    model = build_model(name, num_classes=2, in_channels=channels, rngs=nnx.Rngs(0), **options)
    calibrate(model, normalize(patches(256, 32, 1)[..., :channels], *constants))
    return model


def calibrate(model, images):
    deep = isinstance(model.conv1, nnx.List)
    conv, norm = (model.conv1[0], model.conv1[1]) if deep else (model.conv1, model.bn1)
    x = conv(images)
    norm.mean[...], norm.var[...] = x.mean((0, 1, 2)), x.var((0, 1, 2))


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])  # one convolution, and three with norms between them
@pytest.mark.parametrize("expected", [IMAGENET, UNIT, PIXELS])
def test_it_is_silent_only_where_the_images_are_as_expected(name, expected):
    model = network(name, expected)
    for given in (IMAGENET, UNIT, PIXELS):
        note = doubt(model, normalize(patches(16, 32, 5), *given))
        assert (note is None) == (given == expected), (given, note)


def test_the_sentence_has_the_ratio_of_the_variances():
    """Images are 20 times as bright, and so have 400 times the variance, in every channel."""
    model, images = network(), normalize(patches(16, 32, 5))
    x = model.conv1(20 * images)
    found = float(jnp.exp(jnp.log(x.var((0, 1, 2)) / model.bn1.var[...]).mean()))
    assert found == pytest.approx(400, rel=0.5)
    assert f"the first norm sees {found:.3g} times the variance" in doubt(model, 20 * images)
    assert "sees 1/" in doubt(model, images / 20)


def test_a_mean_that_is_off_is_told_as_such():
    model = network()
    model.bn1.mean[...] += 20 * jnp.sqrt(model.bn1.var[...])
    assert "the first norm sees means 20 standard deviations from" in doubt(model, normalize(patches(16, 32, 5)))


def test_few_images_may_differ_more():
    """What several images cannot be by accident, a single one can."""
    model, images = network(), normalize(patches(16, 32, 5), *UNIT)
    assert doubt(model, images[:SEVERAL])
    assert doubt(model, images[: SEVERAL - 1]) is None
    assert doubt(model, normalize(patches(1, 32, 5), *PIXELS))


@pytest.mark.parametrize("options", [{}, {"norm_layer": GroupNorm}], ids=["new", "GroupNorm"])
def test_without_statistics_it_is_silent(options):
    model = build_model("resnet18", num_classes=10, rngs=nnx.Rngs(0), **options)
    assert doubt(model, 255 * normalize(patches(16, 32, 5))) is None


# The commands


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, image in enumerate(patches(16, 32, 5)):
        path = tmp_path / "images" / ("train" if number % 2 else "test") / "ab"[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("expected", "metadata", "warns"),
    [
        (IMAGENET, {}, False),
        (PIXELS, {}, True),
        (PIXELS, Preprocessing().to_metadata(), False),  # it came with the weights, and nothing was assumed
    ],
)
def test_images_with_an_assumed_preprocessing(expected, metadata, warns, folder, capsys):
    """Once, however many batches there are."""
    write_checkpoint("w.safetensors", parity.to_torch(network(constants=expected)), metadata)
    pretrained = load_pretrained(None, "w.safetensors")
    assert len(list(run_on_images(find_images([str(folder)]), 8, pretrained, lambda images: {}))) == 2
    assert capsys.readouterr().err.count("warning: the first norm sees") == warns


def test_evaluation(folder, capsys):
    write_checkpoint("w.safetensors", parity.to_torch(network(constants=PIXELS)), {})
    options = ["--weights", "w.safetensors", "--data", f"folder:{folder}", "--image-size", "32"]
    mean, std = ([str(value) for value in values] for values in IMAGENET)
    assert command.main(["--evaluate", *options, "--mean", *mean, "--std", *std, "--batch-size", "16"]) == 0
    assert capsys.readouterr().out.count("warning: the first norm sees") == 1


@pytest.mark.parametrize("expected", [UNIT, PIXELS], ids=["as given", "pixels"])
def test_the_first_step_of_training(expected, monkeypatch, tmp_path, capsys):
    """Once, before the first step; a resumed run has had its warning."""

    def load(name, weights, *, num_classes, in_channels, rngs, **options):
        model = small.Small(num_classes, in_channels, rngs)
        calibrate(model, normalize(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8), *expected))
        return Pretrained(model, name, weights, Preprocessing(), False, None, ())

    small.use_small_network(monkeypatch, tmp_path)
    monkeypatch.setattr("resnet_flax.training.setup.load_pretrained", load)
    options = [*small.OPTIONS, "--weights", "w.pth", "--mean", "0", "--std", "1", "--workdir", "run"]
    assert small.run(*options) == 0
    assert capsys.readouterr().out.count("warning: the first norm sees") == (expected == PIXELS)
    assert small.run(*options, "--resume", "--epochs", "4") == 0
    assert "the first norm" not in capsys.readouterr().out


def test_a_random_network_is_not_looked_at(monkeypatch, tmp_path, capsys):
    small.use_small_network(monkeypatch, tmp_path)
    monkeypatch.setattr("resnet_flax.training.setup.doubt", lambda *_: pytest.fail("there are no weights"))
    assert small.run(*small.OPTIONS, "--workdir", "run", "--epochs", "1") == 0
