"""Images that weights do not expect, by the first norm."""

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_sample_images

from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD, normalize
from resnet_flax.models import ResNet, build_model
from resnet_flax.weights.guard import input_warning

SIZE = 32


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """uint8 (96, 32, 32, 3) of two photographs."""
    photos, rng = load_sample_images().images, np.random.default_rng(0)
    found = []
    for index in range(96):
        top, left = (int(rng.integers(length - SIZE)) for length in photos[0].shape[:2])
        found.append(photos[index % 2][top : top + SIZE, left : left + SIZE])
    return np.stack(found)


@pytest.fixture(scope="module", params=["resnet10t", "resnet18"])
def model(request) -> ResNet:
    return build_model(request.param, rngs=nnx.Rngs(0))


def expecting(model: ResNet, inputs: jax.Array) -> ResNet:
    """The model, whose first norm has the statistics of these inputs."""
    deep = isinstance(model.conv1, nnx.List)
    convolution, norm = model.conv1[:2] if deep else (model.conv1, model.bn1)
    y = np.asarray(convolution(inputs), np.float64)
    norm.mean[...], norm.var[...] = (np.asarray(f((0, 1, 2)), np.float32) for f in (y.mean, y.var))
    return model


def warning(model: ResNet, images: np.ndarray) -> str | None:
    return input_warning(model, images, IMAGENET_MEAN, IMAGENET_STD)


KINDS = {
    "as given": lambda x: normalize(x),
    "from 0 to 255": lambda x: x.astype(np.float32),
    "from 0 to 1": lambda x: x.astype(np.float32) / np.float32(255),
    "in BGR": lambda x: normalize(x)[..., ::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_weights_expect_is_named(model, patches, kind):
    text = warning(expecting(model, KINDS[kind](patches[16:])), patches[:16])
    if kind == "as given":
        assert text is None
    else:
        assert text is not None
        assert text.endswith(f"fit images {kind}")


def test_how_far_off_the_images_are(model, patches):
    unscaled = expecting(model, KINDS["from 0 to 1"](patches[16:]))
    text = warning(unscaled, patches[:16])
    assert text is not None
    factor = float(text.split("sees ")[1].split(" times the variance")[0])
    assert factor == pytest.approx(1 / np.mean(IMAGENET_STD) ** 2, rel=0.4)


def test_one_image_is_judged_only_by_what_no_contrast_explains(model, patches):
    assert all(warning(expecting(model, KINDS["as given"](patches[16:])), patches[n : n + 1]) is None for n in range(4))
    text = warning(expecting(model, KINDS["from 0 to 255"](patches[16:])), patches[:1])
    assert text is not None


def test_a_new_network_expects_nothing(patches):
    assert warning(build_model("resnet18", rngs=nnx.Rngs(0)), patches[:16]) is None


def test_other_images_than_those_trained_on_are_no_fault(model, patches):
    """Low contrast, and no colour."""
    expected = expecting(model, KINDS["as given"](patches[16:]))
    faint = (patches[:16] // 3 + 80).astype(np.uint8)
    grey = np.repeat(patches[:16].mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    assert warning(expected, faint) is None
    assert warning(expected, grey) is None
