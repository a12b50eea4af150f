"""`--resize fast`: how far it is from Pillow, where it applies, and that nothing else changes."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from parity.errors import MissingPackageError
from resnet_flax.data.fast_resize import fast_resize
from resnet_flax.data.transforms import RESAMPLING, TrainingTransform, to_array
from resnet_flax.errors import UserError
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.saved_config import as_json, from_json
from resnet_flax.training.setup import resolve

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")
SIZES = ((64, 48), (224, 224), (301, 90))


@pytest.fixture
def package():
    return pytest.importorskip("cykooz_resizer", reason="needs the extra fast")


def photograph(name):
    with Image.open(Path(skimage.data.__file__).parent / name) as opened:
        return opened.convert("RGB").resize((250, 187))


def distance(image, size, interpolation):
    ours, pillow = (
        np.asarray(result).astype(int)
        for result in (fast_resize(image, size, interpolation), image.resize(size, RESAMPLING[interpolation]))
    )
    return np.abs(ours - pillow)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_bilinear_differs_by_what_is_rounded(package, name, size):
    # Both round to whole levels twice, once after each axis; weights of a sum of 1 pass the first on undiminished.
    difference = distance(photograph(name), size, "bilinear")
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.25


@pytest.mark.parametrize("size", SIZES)
def test_bicubic_is_the_same_kernel(package, size):
    difference = distance(photograph("coffee.png"), size, "bicubic")
    assert (difference > 1).mean() < 0.01  # the kernel of another parameter: more than a tenth
    assert (difference > 0).mean() < 0.25


def test_grey_images(package):
    image = photograph("coffee.png").convert("L")
    assert fast_resize(image, (64, 64), "bilinear").mode == "L"
    assert distance(image, (64, 64), "bilinear").max() <= 2


def test_the_same_crops_flips_and_random_numbers(package):
    exact = TrainingTransform(96)
    fast = pickle.loads(pickle.dumps(replace(exact, resize="fast")))  # as a worker process gets it
    image = to_array(photograph("chelsea.png"))
    for seed in range(8):
        ours, theirs = (transform(image, seed).astype(int) for transform in (fast, exact))
        assert np.abs(ours - theirs).max() <= 2
    assert any((fast(image, seed) != exact(image, seed)).any() for seed in range(8))


def test_nearest_stays_pillow_s():
    fast, exact = (TrainingTransform(32, interpolation="nearest", resize=resize) for resize in ("fast", "exact"))
    image = to_array(photograph("chelsea.png"))
    assert np.array_equal(fast(image, 0), exact(image, 0))


def imagenet(**data):
    config = RECIPES["imagenet_v2"].config
    return replace(config, data=replace(config.data, **data))


def test_the_run_s_configuration_holds_it(package):
    assert resolve(imagenet()).data.train_transform.resize == "exact"
    config = resolve(imagenet(resize="fast"))
    assert config.data.train_transform == replace(imagenet().data.train_transform, resize="fast")
    assert config.data.eval_transform == imagenet().data.eval_transform
    assert from_json(as_json(config)) == config
    assert resolve(config) == config


def test_other_transforms_refuse_it(package):
    config = RECIPES["digits"].config
    with pytest.raises(UserError, match=r"--resize fast is for random resized crops.*SmallImageTransform"):
        resolve(replace(config, data=replace(config.data, resize="fast")))


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    with pytest.raises(MissingPackageError, match=r"--resize fast needs cykooz_resizer.*\[fast\]"):
        resolve(imagenet(resize="fast"))
