"""Predictions: pixels of any kind in, probabilities of named classes out."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from resnet_flax.data import EvaluationTransform, Preprocessing, normalize
from resnet_flax.errors import UserError
from resnet_flax.models import BasicBlock, ResNet
from resnet_flax.weights.pretrained import Pretrained


def pretrained(num_classes=3, **options):
    model = ResNet(
        BasicBlock, (1,), channels=(8,), num_classes=num_classes, small_images=True, rngs=nnx.Rngs(0), **options
    )
    model.eval()
    preprocessing = Preprocessing(EvaluationTransform(None, None), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    names = ("ant", "bee", "cat")[:num_classes] or None
    return Pretrained(model, "small", "a file", preprocessing, False, names, ("one note",))


@pytest.fixture(scope="module")
def trained():
    return pretrained()


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)


def test_images_of_every_kind_give_the_same(trained, tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(IMAGES[0]).save(path)
    probabilities = trained.predict(IMAGES).probabilities
    logits = np.asarray(trained.model(normalize(IMAGES, trained.preprocessing.mean, trained.preprocessing.std)))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)  # exp and its sum, in float32, of 3 values
    for same in ([IMAGES[0], IMAGES[1]], [str(path), Image.fromarray(IMAGES[1])], [path, IMAGES[1]]):
        np.testing.assert_array_equal(trained.predict(same).probabilities, probabilities)
    assert len(trained.predict(IMAGES[0])) == len(trained.predict(path)) == 1


def test_the_likeliest_come_first(trained):
    predictions = trained.predict(IMAGES)
    for row, probabilities in zip(predictions.top(2), predictions.probabilities, strict=True):
        assert [p for _, p in row] == sorted(map(float, probabilities), reverse=True)[:2]
        assert row[0][0] == ("ant", "bee", "cat")[probabilities.argmax()]
    first, second = str(predictions).splitlines()
    assert first.startswith("0  ")
    assert second.count("%") == 3


def test_the_model_is_left_in_its_mode_and_computes_in_eval_mode(trained):
    expected = trained.predict(IMAGES).probabilities
    trained.model.train()
    np.testing.assert_array_equal(trained.predict(IMAGES).probabilities, expected)
    assert not trained.model.bn1.use_running_average
    trained.model.eval()


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (IMAGES / 255, "predict takes pixels from 0 to 255 as uint8, which it normalises; got float64"),
        (IMAGES.transpose(0, 3, 1, 2), r"predict takes images \(H, W, 3\); got one of shape \(3, 6, 5\)"),
        (IMAGES[..., :1], "predict takes images"),
        ([IMAGES[0], IMAGES[1][:-1]], "the images differ in size"),
        ([], "no images were given"),
    ],
)
def test_what_cannot_be_classified(trained, images, sentence):
    with pytest.raises(UserError, match=sentence):
        trained.predict(images)


def test_without_a_head_there_are_no_classes():
    with pytest.raises(UserError, match="has no head"):
        pretrained(num_classes=0).predict(IMAGES)


def test_printing_is_a_few_lines(trained):
    lines = repr(trained).splitlines()
    assert lines == [
        "small from a file",
        "  images   mean (0.4, 0.5, 0.6), std (0.2, 0.3, 0.25), assumed",
        "  classes  3: ant, bee, cat",
        "  note     one note",
    ]
