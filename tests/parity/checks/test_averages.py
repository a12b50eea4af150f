"""Moving averages of weights: faults of the decay are caught and named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import parity


def averaged(decay=0.99, **options):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return AveragedModel(network, avg_fn=get_ema_avg_fn(decay), **options)


def moved(decay, first=0.0):
    """`decay(step)` of the average, and in the first update `first`: PyTorch's copies the values."""

    def update(average, values, step):
        rate = first if step == 0 else decay(step)
        return optax.incremental_update(values, average, 1 - rate)

    return update


def test_the_same_average_agrees():
    original = averaged(use_buffers=True)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    report = parity.check_average(moved(lambda step: 0.99), original)
    assert report.passed, str(report)
    assert {"0.weight", "1.running_var"} <= {row.name for row in report.comparisons}
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
    assert parity.check_average(moved(lambda step: step / (step + 1)), AveragedModel(nn.Linear(3, 2))).passed


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (moved(lambda step: 0.999), "is 0, 0.999, 0.999, 0.999, 0.999, PyTorch's is 0, 0.99, 0.99, 0.99, 0.99"),
        (moved(lambda step: 0.99, first=0.99), "PyTorch's first update copies the values"),
        (moved(lambda step: 0.01, first=1.0), "the shares of the average and of the new value are exchanged"),
        (lambda average, values, step: jax.tree.map(jnp.sin, average), "is the first average to differ"),
    ],
)
def test_another_decay_is_named(update, words):
    report = parity.check_average(update, averaged())
    assert not report.passed
    assert words in str(report.findings[0])


def test_a_decay_of_the_update_before_is_named():
    report = parity.check_average(
        moved(lambda step: (step - 1) / step, first=0.5), AveragedModel(nn.Linear(3, 2)), steps=3
    )
    assert "it is that of the update before" in str(report.findings[0])


def test_other_names_are_refused():
    with pytest.raises(parity.ParityError, match=r"0\.weight.* differ"):
        parity.check_average(lambda average, values, step: {"0.bias": np.zeros(2)}, averaged())
