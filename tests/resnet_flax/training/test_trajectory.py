"""The Fashion-MNIST recipes, step by step beside a PyTorch loop in float64 from the same start."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_flax.data import open_source
from resnet_flax.training.recipes import RECIPES
from tests import ROOT

pytest.importorskip("torch", reason="compares with PyTorch")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def benchmark():
    path = ROOT / "benchmarks" / "recipe_vs_torch.py"
    spec = importlib.util.spec_from_file_location("recipe_vs_torch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("recipe", "size", "batch_size", "steps"),
    [
        ("fashion_mnist_adam", 28, 6, 3),
        ("fashion_mnist_sgd", 28, 6, 3),
        ("fashion_mnist_adam", 96, 256, 50),
    ],
)
@pytest.mark.full
def test_recipe_follows_torch(benchmark, recipe, size, batch_size, steps):
    config = replace(RECIPES[recipe].config, batch_size=batch_size)
    transform = replace(config.data.train_transform, size=size)
    config = replace(config, data=replace(config.data, train_transform=transform))
    source = open_source(config.data.data if FASHION_MNIST.exists() else "digits", "train")
    losses, far = benchmark.follow(config, source, steps)
    assert benchmark.follows(losses, far)
    if recipe == "fashion_mnist_adam":  # it does not overshoot
        assert (benchmark.relative(losses) <= 1e-9).all()
    losses[0, 1] *= 1 + 1e-6
    assert not benchmark.follows(losses, far)
