"""Figures beyond accuracy, and weights of classes, against scikit-learn's and PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.data import open_source
from resnet_flax.errors import UserError
from resnet_flax.training.class_weights import class_weights
from resnet_flax.training.config import LossConfig
from resnet_flax.training.evaluation import Evaluation
from resnet_flax.training.loss import make_loss

RNG = np.random.default_rng(0)


def evaluation(confusion, loss=1.0):
    return Evaluation(int(confusion.sum()), loss, 0.5, 0.75, confusion)


def test_precision_recall_and_f1_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = RNG.integers(0, 5, 60), RNG.integers(0, 6, 60)  # class 5 is predicted and never true
    confusion = np.zeros((7, 7), int)  # class 6 is neither
    np.add.at(confusion, (true, predicted), 1)
    result = evaluation(confusion)
    theirs = metrics.precision_recall_fscore_support(true, predicted, labels=range(7), zero_division=np.nan)
    # NaN where scikit-learn is asked for it; its F1 of a class that is never true is 0, as ours.
    np.testing.assert_allclose(result.precision, theirs[0], rtol=1e-15)
    np.testing.assert_allclose(result.recall, theirs[1], rtol=1e-15)
    np.testing.assert_allclose(result.f1[:6], theirs[2][:6], rtol=1e-15)
    macro = metrics.f1_score(true, predicted, average="macro", zero_division=0.0)
    np.testing.assert_allclose(result.macro_f1, macro, rtol=1e-15)


def test_scores_grow_with_quality():
    result = evaluation(np.array([[3, 1], [0, 4]]), loss=0.25)
    assert [result.score(name) for name in ("loss", "accuracy", "top5")] == [-0.25, 0.5, 0.75]
    assert result.score("macro-f1") == result.macro_f1 == np.mean([6 / 7, 8 / 9])
    assert evaluation(np.eye(2), loss=float("nan")).score("loss") == -float("inf")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    logits, labels, weights = RNG.normal(size=(6, 4)), RNG.integers(0, 4, 6), (0.5, 2.0, 0.0, 1.25)
    expected = torch.nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float64), label_smoothing=smoothing)(
        torch.tensor(logits), torch.tensor(labels)
    )
    loss = make_loss(LossConfig(label_smoothing=smoothing), weights)
    ours = loss(jnp.asarray(logits, jnp.float32), jnp.eye(4, dtype=jnp.float32)[labels])
    # Seven roundings or so of float32, on terms of both signs below 10.
    np.testing.assert_allclose(float(ours), expected.item(), atol=10 * 8 * np.finfo(np.float32).eps)
    unweighted = make_loss(LossConfig(label_smoothing=smoothing))
    assert abs(float(unweighted(jnp.asarray(logits, jnp.float32), jnp.eye(4)[labels])) - expected.item()) > 1e-3


def test_a_batch_of_classes_without_weight_has_no_loss():
    loss = make_loss(LossConfig(), (0.0, 1.0))
    assert float(loss(jnp.ones((3, 2)), jnp.eye(2)[jnp.zeros(3, int)])) == 0.0


def test_weighted_binary_cross_entropy_is_torchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    logits, targets, weights = RNG.normal(size=(6, 4)), RNG.random((6, 4)), (0.5, 2.0, 0.0, 1.25)
    expected = torch.nn.BCEWithLogitsLoss(torch.tensor(weights, dtype=torch.float64))(
        torch.tensor(logits), torch.tensor(targets)
    )
    loss = make_loss(LossConfig(loss="binary_cross_entropy"), weights)
    ours = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(float(ours), expected.item(), atol=10 * 8 * np.finfo(np.float32).eps)


def test_balanced_weights_are_scikit_learns():
    utils = pytest.importorskip("sklearn.utils")
    source = open_source("digits")
    expected = utils.compute_class_weight("balanced", classes=np.arange(10), y=source.labels)
    np.testing.assert_allclose(class_weights("balanced", source), expected, rtol=1e-15)
    assert class_weights(None, source) is None


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("w.txt", "1\n0\n2.5\n", (1, 0, 2.5)),
        ("w.json", "[1, 0, 2.5]", (1, 0, 2.5)),
        ("w.json", '{"2": 2.5, "0": 1, "1": 0}', (1, 0, 2.5)),
        ("w.json", '{"2": 2.5, "0": 1, "x": 0}', "each class of .* once; see 1, x"),
        ("w.txt", "1 2", "has 2 values, but .* has 3 classes"),
        ("w.txt", "1 2 x", "something other than numbers"),
        ("w.txt", "1 2 nan", "finite, at least 0"),
        ("w.txt", "1 2 -1", "finite, at least 0"),
        ("w.txt", "0 0 0", "not all 0"),
        ("w.json", "[1, true, 2]", "finite, at least 0"),
        ("w.json", "3", "no list"),
    ],
)
def test_weights_from_files(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    source = open_source("synthetic:4x4x1:3")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            class_weights(str(tmp_path / name), source)
    else:
        assert class_weights(str(tmp_path / name), source) == expected
