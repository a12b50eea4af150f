"""A pair that differs does not agree in silence: each such difference fails, or is a warning of the report."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity
from parity.checks.tolerance import relative
from parity.reports.html import as_html
from parity.reports.json import as_dict
from tests.parity.checks.test_verdicts import Call, Ours, Theirs, dense, filled, linear

INPUTS = parity.random_inputs((3, 6))


def checked(pair, inputs=INPUTS, checks=("forward",), fill=True, **options):
    return parity.check(*(filled(*pair) if fill else pair), inputs, checks=checks, **options)


def warns(report, *words):
    assert report.passed, str(report)
    assert any(all(word in warning for word in words) for warning in report.warnings), report.warnings


def test_a_pair_without_caveats_has_none():
    report = checked(dense(), checks=("forward", "activations", "gradients", "optimizer"))
    assert report.passed
    assert not report.warnings


def test_train_mode_of_a_network_without_statistics():
    pair = dense(torch_run=lambda s, x: s.fc(x) * (2 if s.training else 1))
    report = checked(pair)
    assert {row.mode for row in report.failures} == {"train"}

    class Doubling(Ours):
        def __call__(self, x, training=False):
            return self.fc(x) * (2 if training else 1)

    ours = Doubling(None, fc=linear())
    report = checked((ours, pair[1]))
    assert report.passed
    assert {row.mode for row in report.comparisons} == {"eval", "train"}
    assert report.settings["modes passed at call time"]["Flax"] == {"training": True}
    assert {row.mode for row in checked(dense()).comparisons} == {"eval"}  # one program in both modes


def test_rates_of_dropout_and_stochastic_depth():
    class TorchDropPath(nn.Module):
        def __init__(self, drop_prob):
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x):
            return x if not self.training or not self.drop_prob else x * torch.bernoulli(x)

    class DropPath(nnx.Module):
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, x):
            return x

    def pair(rate, depth):
        return (
            Ours(
                lambda s, x: s.path(s.drop(s.fc(x), deterministic=False)),
                fc=linear(),
                drop=nnx.Dropout(rate, rngs=nnx.Rngs(0)),
                path=DropPath(depth),
            ),
            Theirs(
                lambda s, x: s.path(s.drop(s.fc(x))), fc=nn.Linear(6, 4), drop=nn.Dropout(0.1), path=TorchDropPath(0.2)
            ),
        )

    warns(checked(pair(0.5, 0.3)), "drop 0.5 in Flax and 0.1 in PyTorch", "path 0.3 in Flax and 0.2 in PyTorch")
    assert not checked(pair(0.1, 0.2)).warnings


def test_a_dtype_that_the_network_declares():
    ours, theirs = dense()
    ours.fc = linear(dtype=jnp.bfloat16)
    warns(checked((ours, theirs)), "fc computes in bfloat16", "float64")
    half = filled(*dense())
    half[1].half()
    report = checked(half, fill=False)
    assert any("float16" in warning for warning in report.warnings)


def test_the_loss_itself():
    plain = lambda o, t: ((o - t) ** 2).mean()  # noqa: E731
    report = checked(dense(), checks="gradients", loss=(lambda o, t: plain(o, t) + 1.0, plain))
    assert [row.name for row in report.failures] == ["(loss)"]
    assert "the loss of the same outputs and targets is" in report.findings[0].cause


@pytest.mark.parametrize("mask", [-1e4, -1e9, -jnp.inf])
def test_values_beside_a_mask(mask):
    def pair(factor):
        keep = np.arange(4) % 2 == 0
        return dense(
            lambda s, x: jnp.where(keep[None], factor * s.fc(x), mask),
            lambda s, x: s.fc(x).masked_fill(torch.from_numpy(~keep), float(mask)),
        )

    assert checked(pair(1.0), checks=("forward", "gradients")).passed
    assert not checked(pair(1 + 1e-8)).passed


def test_a_small_channel_beside_a_large_one():
    def pair(factor):
        ours, theirs = np.array([1e7, 1, 1, factor]), torch.tensor([1e7, 1, 1, 1.0])
        return dense(lambda s, x: s.fc(x) * ours[None], lambda s, x: s.fc(x) * theirs)

    assert checked(pair(1.0)).passed
    assert not checked(pair(1 + 1e-5)).passed


def test_a_small_gradient_beside_a_large_one():
    def pair(factor):
        return (
            Ours(lambda s, x: s.big(x) * 1e6 + s.small(factor * x) * 1e-6, big=linear(), small=linear()),
            Theirs(lambda s, x: s.big(x) * 1e6 + s.small(x) * 1e-6, big=nn.Linear(6, 4), small=nn.Linear(6, 4)),
        )

    total = (lambda o, t: o.sum(), lambda o, t: o.sum())
    assert checked(pair(1.0), checks="gradients", loss=total).passed
    report = checked(pair(1.01), checks="gradients", loss=total)
    assert "small.weight" in {row.name for row in report.failures}


def test_degenerate_inputs():
    warns(checked(dense(), np.zeros((3, 6), np.float32)), "every value of the inputs is 0")
    warns(checked(dense(), INPUTS[:1]), "a batch of one")


def test_padding_same_at_odd_sizes():
    def pair(padding):
        return (
            Ours(lambda s, x: s.conv(x), conv=nnx.Conv(3, 4, (3, 3), strides=2, padding=padding, rngs=nnx.Rngs(0))),
            Theirs(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3, stride=2, padding=1)),
        )

    odd, even = parity.random_inputs((2, 5, 7, 3)), parity.random_inputs((2, 6, 6, 3))
    warns(checked(pair("SAME"), odd), "conv has a stride and padding SAME")
    assert not checked(pair(1), odd).warnings
    assert not checked(pair("SAME"), even).passed


def test_gammas_of_zero():
    def pair():
        pair = filled(
            Ours(lambda s, x: s.fc(s.norm(x) + x), norm=nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0)), fc=linear()),
            Theirs(lambda s, x: s.fc(s.norm(x) + x), norm=nn.LayerNorm(6), fc=nn.Linear(6, 4)),
        )
        with torch.no_grad():
            pair[1].norm.weight.zero_()
        parity.to_flax(pair[1].state_dict(), pair[0])
        return pair

    warns(checked(pair(), fill=False), "norm.weight is zero")


def test_hyperparameters_that_no_check_exercised():
    def norms(momentum):
        return nnx.BatchNorm(6, momentum=momentum, epsilon=1e-5, rngs=nnx.Rngs(0)), nn.BatchNorm1d(6)

    warns(checked(norms(0.99)), "momentum of the network is 0.99, PyTorch's 0.1, which is 0.9 here")
    assert not checked(norms(0.9)).warnings
    warns(checked(dense(), optimizer="adam"), "an optimiser was given")


def test_a_setting_that_is_found_to_be_the_cause_made_a_difference():
    ours, theirs = nnx.BatchNorm(6, momentum=0.9, epsilon=1e-3, rngs=nnx.Rngs(0)), nn.BatchNorm1d(6)
    report = checked((ours, theirs), checks=("forward",))
    assert "epsilon" in report.findings[0].cause
    assert not report.warnings


def test_overflow_that_only_float32_shows():
    def softmax(s, x):
        exponentials = jnp.exp(100 * s.fc(x))
        return exponentials / exponentials.sum(-1, keepdims=True)

    report = checked(dense(softmax, lambda s, x: (100 * s.fc(x)).softmax(-1)))
    assert not report.passed
    assert [row.check for row in report.failures] == ["float32"]
    assert "NaN or infinite in float32" in str(report.findings[0])
    warns(
        checked(dense(lambda s, x: (s.fc(x) + 700) ** 2 - 1400 * s.fc(x) - 490000, lambda s, x: s.fc(x) ** 2)),
        "Flax loses precision",
    )


def test_submodules_that_are_lost_inside_a_transformation():
    pair = dense(lambda s, x: nnx.jit(lambda m, y: m(y))(s.fc, x))
    warns(checked(pair, checks=("forward", "activations")), "fc of the Flax network was not seen")


def test_infinite_values_on_both_sides():
    def pair(factor):
        where = np.arange(4) == 2
        return dense(
            lambda s, x: jnp.where(where[None], jnp.inf, factor * s.fc(x)),
            lambda s, x: s.fc(x).masked_fill(torch.from_numpy(where), torch.inf),
        )

    warns(checked(pair(1.0)), "3 infinite values that are equal on both sides")
    assert not checked(pair(1 + 1e-8)).passed


def test_two_modules_that_meet_one_name():
    shared = nn.ReLU()
    pair = (
        Ours(lambda s, x: s.two(s.fc(s.one(x))), one=Call(nnx.relu), two=Call(nnx.relu), fc=linear()),
        Theirs(lambda s, x: s.act(s.fc(s.act(x))), act=shared, fc=nn.Linear(6, 4)),
    )
    report = checked(pair, checks=("forward", "activations"), names={"one": "act", "two": "act"})
    assert {row.name for row in report.of("activations")} == {"act", "act#2", "fc"}
    assert any("meet PyTorch's act" in note for note in report.notes)
    two = Ours(lambda s, x: s.b(s.a(x)), a=linear(6, 6), b=linear(6, 6))
    with pytest.raises(parity.ParityError, match=r"both meet PyTorch's a\.(weight|bias)"):
        parity.check(two, nn.Sequential(), INPUTS, names={"b": "a"})


def test_initial_values_of_filled_networks():
    inputs = parity.random_inputs((3, 16))

    def report(fill):
        pair = Ours(lambda s, x: s.fc(x), fc=linear(16, 8)), Theirs(lambda s, x: s.fc(x), fc=nn.Linear(16, 8))
        return checked(pair, inputs, ("initialization",), fill)

    warns(report(fill=True), "filled with the same values")
    assert not report(fill=False).warnings


def test_initial_values_that_are_constants_are_alike_of_themselves():
    ours, theirs = nnx.BatchNorm(6, rngs=nnx.Rngs(0)), nn.BatchNorm1d(6)
    report = parity.check(ours, theirs, INPUTS, checks=("initialization",), modes="eval")
    assert not any("filled" in warning for warning in report.warnings)


def test_warnings_are_in_every_report():
    report = checked(dense(), INPUTS[:1])
    words = report.warnings[0]
    assert f"warning: {words[:40]}" in str(report)
    assert words in json.loads(json.dumps(as_dict(report)))["warnings"]
    assert "What the verdict does not cover" in as_html(report)


def test_relative_error_of_complex_values():
    value = np.array([1 + 2j, 3 - 1j])
    assert relative(value, value) == 0
    assert relative(value, value.conj()) > 0.5
