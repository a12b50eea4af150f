"""Running statistics of networks that cannot be taken apart: Linen against PyTorch, and PyTorch against PyTorch."""

import flax.linen
import jax
import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

from torch import nn

import parity

INPUTS = parity.random_inputs((3, 5, 4, 6))


class Norm(flax.linen.Module):
    """A BatchNorm as PyTorch's, or with one of the usual differences in how its statistics move."""

    momentum: float = 0.9
    is_biased: bool = False
    is_frozen: bool = False
    drift: float = 0.0

    @flax.linen.compact
    def __call__(self, x, train=False):
        shape = (x.shape[-1],)
        scale = self.param("scale", flax.linen.initializers.ones, shape)
        bias = self.param("bias", flax.linen.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jax.numpy.zeros, shape)
        var = self.variable("batch_stats", "var", jax.numpy.ones, shape)
        of_batch = mean.value, var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            of_batch = x.mean(axes), x.var(axes)
            if not self.is_initializing() and not self.is_frozen:
                n = x.size // x.shape[-1]
                unbiased = of_batch[1] * (1 if self.is_biased else n / (n - 1))
                mean.value = self.momentum * mean.value + (1 - self.momentum) * of_batch[0]
                var.value = (1 + self.drift) * (self.momentum * var.value + (1 - self.momentum) * unbiased)
        center, spread = (value.reshape(1, 1, 1, -1) for value in of_batch)
        scale, bias = (value.reshape(1, 1, 1, -1) for value in (scale, bias))
        return (x - center) * jax.lax.rsqrt(spread + 1e-5) * scale + bias


class Nested(flax.linen.Module):
    norm: flax.linen.Module

    @flax.linen.compact
    def __call__(self, x, train=False):
        return self.norm.copy(name="bn")(x, train)


class LinenNet(flax.linen.Module):
    norm: flax.linen.Module

    @flax.linen.compact
    def __call__(self, x, train=False):
        x = Nested(self.norm, name="block")(flax.linen.Conv(6, (3, 3), padding=1, name="conv")(x), train)
        return flax.linen.Dense(5, name="fc")(jax.nn.relu(x).mean((1, 2)))


class TorchNet(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)
        self.block = nn.ModuleDict({"bn": nn.BatchNorm2d(6, momentum=momentum)})

    def forward(self, x):
        return self.fc(self.block["bn"](self.conv(x)).relu().mean((2, 3)))


def report_of(norm, momentum=0.1):
    theirs, ours = TorchNet(momentum), LinenNet(norm)
    parity.randomize(None, theirs)
    variables = parity.to_flax(theirs.state_dict(), ours.init(jax.random.key(0), INPUTS))
    return parity.check((ours, variables), theirs, INPUTS, checks=("forward", "batch_stats"))


def test_statistics_of_a_nested_linen_norm_agree():
    report = report_of(Norm())
    assert report.passed, str(report)
    assert any("block.bn.running_var" in row.name for row in report.of("batch_stats"))


@pytest.mark.parametrize(
    ("norm", "momentum", "cause"),
    [
        (Norm(is_biased=True), 0.1, "running variance of block.bn is biased: PyTorch keeps the unbiased variance"),
        (Norm(momentum=0.99), 0.1, "statistics of block.bn 0.1 times as far as in PyTorch: another momentum"),
        (Norm(momentum=0.7, is_biased=True), 0.1, "3 times as far as in PyTorch: another momentum; and the running"),
        (Norm(momentum=0.99), 0.03, "0.333333 times as far"),
        (Norm(is_frozen=True), 0.1, "running statistics of block.bn do not change in train mode"),
    ],
)
def test_causes_are_read_off_the_values(norm, momentum, cause):
    report = report_of(norm, momentum)
    assert not report.passed
    assert not [row for row in report.failures if row.check != "batch_stats"]
    assert cause in report.findings[0].cause


@pytest.mark.parametrize("drift", [1e-9, 1e-7, 1e-2])
def test_a_difference_of_any_size_that_no_hypothesis_explains_has_no_cause(drift):
    report = report_of(Norm(drift=drift))
    assert not report.passed
    assert "is the first statistic to differ" in report.findings[0].cause


def test_another_update_has_no_cause():
    theirs, other = TorchNet(), TorchNet()
    parity.randomize(None, theirs)
    other.load_state_dict(theirs.state_dict())

    def squared(norm, inputs, output):
        norm.running_mean.square_()

    other.block["bn"].register_forward_hook(squared)
    report = parity.check(other, theirs, INPUTS.transpose(0, 3, 1, 2), checks=("batch_stats",))
    assert not report.passed
    assert "to differ" in report.findings[0].cause
