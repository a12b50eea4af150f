"""Recipes against the settings their sources document, and dry runs."""

import dataclasses

import pytest

from resnet_flax.commands import dry_run
from resnet_flax.commands import train as command
from resnet_flax.data.transforms import EvaluationTransform
from resnet_flax.errors import UserError
from resnet_flax.models import get_architecture
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.setup import resolve


def flat(config, prefix=""):
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= flat(value, f"{field.name}.") if nested else {f"{prefix}{field.name}": value}
    return found


# torchvision's references/classification: the defaults of train.py (V1), and the flags that its blog post "How to Train
# State-Of-The-Art Models Using TorchVision's Latest Primitives" gives for the V2 weights.
TORCHVISION = {
    "imagenet_v1": {
        "batch_size": 8 * 32,
        "schedule.epochs": 90,
        "optimizer.optimizer": "momentum",
        "optimizer.learning_rate": 0.1,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "optimizer.no_decay": (),
        "optimizer.ema_decay": None,
        "schedule.schedule": "step",
        "schedule.schedule_unit": "epoch",
        "schedule.step_epochs": 30,
        "schedule.step_factor": 0.1,
        "schedule.warmup_epochs": 0,
        "loss.loss": "cross_entropy",
        "loss.label_smoothing": 0.0,
        "loss.mixup": 0.0,
        "loss.cutmix": 0.0,
        "loss.random_erasing": 0.0,
        "train_transform.crop_size": 224,
        "train_transform.flip": 0.5,
        "train_transform.augment": "none",
        "train_transform.interpolation": "bilinear",
        "eval_transform.resize_size": 256,
        "eval_transform.crop_size": 224,
        "data.repeats": 1,
        "model.sync_bn": False,
    },
    "imagenet_v2": {
        "batch_size": 8 * 128,
        "schedule.epochs": 600,
        "optimizer.optimizer": "momentum",
        "optimizer.learning_rate": 0.5,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 2e-5,
        "optimizer.no_decay": ("norm",),
        "optimizer.ema_every": 32,
        "schedule.schedule": "cosine",
        "schedule.schedule_unit": "epoch",
        "schedule.warmup_epochs": 5,
        "schedule.warmup_start": 0.01,
        "schedule.end_factor": 0.0,
        "loss.loss": "cross_entropy",
        "loss.label_smoothing": 0.1,
        "loss.mixup": 0.2,
        "loss.cutmix": 1.0,
        "loss.random_erasing": 0.1,
        "train_transform.crop_size": 176,
        "train_transform.flip": 0.5,
        "train_transform.augment": "trivial_augment_wide",
        "train_transform.interpolation": "bilinear",
        "eval_transform.resize_size": 232,
        "eval_transform.crop_size": 224,
        "data.repeats": 4,
        "model.sync_bn": False,
    },
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_recipes_are_torchvisions(name):
    config = RECIPES[name].config
    found = flat(config)
    assert {key: found[key] for key in TORCHVISION[name]} == TORCHVISION[name]
    assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (config.data.train_transform.scale, config.data.train_transform.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))


def test_v2s_moving_average_is_torchvisions():
    """Its train.py: alpha = min(1, (1 - decay) * world size * batch size * steps / epochs), decay = 1 - alpha."""
    config = RECIPES["imagenet_v2"].config
    world, batch, steps, epochs = 8, 128, 32, 600
    alpha = min(1.0, (1.0 - 0.99998) * (world * batch * steps / epochs))
    assert config.optimizer.ema_decay == pytest.approx(1 - alpha, abs=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name):
    recipe = RECIPES[name]
    assert recipe.config.recipe == name
    assert get_architecture(recipe.config.model.name)
    assert resolve(recipe.config) == recipe.config
    assert all((recipe.source, recipe.result, recipe.scaling))
    assert len(recipe.config.data.mean) in (1, recipe.data[1])


def test_published_settings_of_the_residual_networks():
    adam, sgd = RECIPES["fashion_mnist_adam"].config, RECIPES["fashion_mnist_sgd"].config
    assert (adam.batch_size, adam.schedule.epochs, adam.data.train_transform.size) == (256, 5, 96)
    assert (adam.optimizer.optimizer, adam.optimizer.learning_rate) == ("adam", 1e-3)
    assert (sgd.batch_size, sgd.schedule.epochs, sgd.data.train_transform.size) == (256, 10, 224)
    assert (sgd.optimizer.optimizer, sgd.optimizer.learning_rate) == ("sgd", 0.05)
    for config in (adam, sgd):
        assert (config.data.mean, config.data.std) == ((0.0,), (1.0,))
        assert (config.schedule.schedule, config.optimizer.weight_decay) == ("constant", 0.0)


def test_fine_tuning_trains_the_head_alone():
    config = RECIPES["finetune"].config
    assert config.model.freeze == ("all-but-head",)
    assert not config.model.train_frozen_statistics
    assert config.data.train_transform == config.data.eval_transform == EvaluationTransform(500, 224)


def test_image_size_sets_both_transforms():
    config = resolve(command.parse(["imagenet_v2", "--image-size", "112"]))
    assert config.data.train_transform.crop_size == 112
    assert config.data.eval_transform == EvaluationTransform(116, 112)
    config = resolve(command.parse(["fashion_mnist_adam", "--image-size", "28"]))
    assert config.data.train_transform.size == 28
    assert config.data.eval_transform == EvaluationTransform(28, 28)


@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(name, marks=pytest.mark.full) for name in RECIPES if name != "digits")]
)
def test_dry_run_without_the_data(name, capsys, monkeypatch, tmp_path):
    """A step of two images compiles; the weights that a recipe starts from need not be there."""

    def nothing_there(*args, **kwargs):
        raise UserError("not here")

    monkeypatch.setattr(dry_run, "open_source", nothing_there)
    monkeypatch.chdir(tmp_path)
    options = ["--dry-run", "--batch-size", "2", "--data-dir", str(tmp_path)]
    assert command.main([name, *options]) == 0
    text = capsys.readouterr().out
    for word in ("parameters", "steps", "GFLOP", "memory", "compiled", "published figures: the data set is not here"):
        assert word in text
    assert not list(tmp_path.iterdir())
