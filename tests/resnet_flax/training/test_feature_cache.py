"""Fine-tuning on cached features: the same result as on images, a backbone that stays as it is, and what conflicts."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.commands import train as command
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm, Conv, Linear
from resnet_flax.training import setup
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.workdir import Workdir
from resnet_flax.weights.pretrained import Pretrained
from tests.resnet_flax.training.small import Plain

OPTIONS = ["--data", "synthetic:8x8x3:64", "--batch-size", "16", "--epochs", "2", "--log-every", "1"]
OPTIONS += ["--image-size", "8", "--learning-rate", "0.1"]


class Small(Plain):
    """A backbone with statistics away from 0 and 1, and a head."""

    def __init__(self, num_classes, in_channels, rngs):
        self.conv1 = Conv(in_channels, 6, 3, padding=1, rngs=rngs)
        self.bn1 = BatchNorm(6, rngs=rngs)
        self.bn1.mean[...] = jnp.linspace(-0.4, 0.6, 6)
        self.bn1.var[...] = jnp.linspace(0.5, 2, 6)
        self.fc = Linear(6, num_classes, rngs=rngs)

    def features(self, x):
        return {"pool": nnx.relu(self.bn1(self.conv1(x))).mean((1, 2))}

    def __call__(self, x):
        return self.fc(self.features(x)["pool"])


def load(name, weights, *, num_classes, in_channels, rngs, **options):
    data = RECIPES["finetune"].config.data
    own = Preprocessing(mean=data.mean, std=data.std)
    return Pretrained(Small(num_classes, in_channels, rngs), name, weights, own, True, None, ())


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "load_pretrained", load)
    monkeypatch.chdir(tmp_path)


def finetune(workdir, *options):
    assert command.main(["finetune", *OPTIONS, "--workdir", workdir, *options]) == 0
    return read_metrics(Workdir(workdir)), read_checkpoint(f"{workdir}/best.safetensors").tensors


def test_cached_features_give_what_images_give():
    rows, weights = finetune("images")
    cached_rows, cached_weights = finetune("features", "--cache-features")
    assert len(rows) == len(cached_rows)
    for row, cached in zip(rows, cached_rows, strict=True):
        assert cached["accuracy"] == pytest.approx(row["accuracy"])
        assert cached["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert rows[0]["loss"] != rows[-1]["loss"]
    for name, array in weights.items():
        if name.startswith("fc."):
            np.testing.assert_allclose(cached_weights[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
        else:
            assert cached_weights[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("options", [[], ["--cache-features"]], ids=["images", "features"])
def test_a_frozen_backbone_stays_as_it_is(options):
    _, weights = finetune("run", *options)
    start = Small(64, 3, nnx.Rngs(0))
    np.testing.assert_array_equal(weights["conv1.weight"], start.conv1.kernel[...].transpose(3, 2, 0, 1))
    for name in ("mean", "var"):
        np.testing.assert_array_equal(weights[f"bn1.running_{name}"], getattr(start.bn1, name)[...])
    assert weights["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-transform.padding", "1"], "random training transforms"),
        (["--mixup", "0.2"], "mixup"),
        (["--stochastic-depth", "0.1"], "--stochastic-depth"),
        (["--train-frozen-statistics"], "--train-frozen-statistics"),
        (["--skip-corrupt", "1"], "--skip-corrupt"),
        (
            ["--freeze", "conv1"],
            r"everything but the head frozen, but 2 other parameters are trained \(bn1.scale is the first\)",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_changes_the_features_conflicts(options, message):
    recipe = "digits" if "--train-transform.padding" in options else "finetune"
    with pytest.raises(UserError, match=message):
        command.main([recipe, *OPTIONS, "--freeze", "all-but-head", "--cache-features", *options])
