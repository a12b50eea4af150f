"""Faults planted in Linen modules, functions of a parameter tree and PyTorch modules, each caught and named."""

from functools import partial

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="compares with PyTorch")

import torch
from torch import nn

import parity
from tests.parity.diagnosis.twins import Torch

IMAGES = parity.random_inputs((2, 7, 9, 4))
FEATURES = parity.random_inputs((3, 6))


class LinenNet(flax.linen.Module):
    """A convolution, a norm, an activation, a pool and two layers."""

    activation: str = "erf"
    epsilon: float = 1e-5
    padding: int = 1
    counts_padding: bool = True

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Conv(8, (3, 3), padding=self.padding, name="conv")(x)
        x = flax.linen.GroupNorm(2, epsilon=self.epsilon, name="norm")(x)
        x = jax.nn.gelu(x, approximate=self.activation == "tanh")
        x = flax.linen.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=self.counts_padding)
        return flax.linen.Dense(5, name="fc")(x.mean((1, 2)))


def torch_net(approximate="none"):
    layers = {"conv": nn.Conv2d(4, 8, 3, padding=1), "norm": nn.GroupNorm(2, 8), "fc": nn.Linear(8, 5)}
    pooled = partial(torch.nn.functional.avg_pool2d, kernel_size=3, stride=2, padding=1)
    return Torch(
        layers,
        lambda s, x: s.fc(pooled(torch.nn.functional.gelu(s.norm(s.conv(x)), approximate=approximate)).mean((2, 3))),
    )


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def mlp(parameters, x, activation=gelu, epsilon=1e-5):
    """As Haiku would have it."""
    first, norm, last = (parameters[name] for name in ("first", "norm", "last"))
    x = activation(x @ first["w"] + first["b"][None])
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)
    return (x * norm["scale"][None] + norm["offset"][None]) @ last["w"] + last["b"][None]


def torch_mlp():
    layers = {"first": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "last": nn.Linear(8, 3)}
    return Torch(layers, lambda s, x: s.last(s.norm(torch.nn.functional.gelu(s.first(x)))))


def tree():
    layers = {"first": (6, 8), "last": (8, 3)}
    parameters = {name: {"w": np.zeros(s, np.float32), "b": np.zeros(s[-1], np.float32)} for name, s in layers.items()}
    return parameters | {"norm": {"scale": np.zeros(8, np.float32), "offset": np.zeros(8, np.float32)}}


def report_of(network, variables, theirs, inputs):
    parity.randomize(None, theirs)
    variables = parity.to_flax(theirs.state_dict(), variables)
    return parity.check((network, variables), theirs, inputs, checks=("forward", "activations", "gradients"))


def of_linen(**options):
    network = LinenNet(**options)
    return report_of(network, network.init(jax.random.key(0), IMAGES), torch_net(), IMAGES)


def test_without_a_fault_they_agree():
    assert of_linen().passed
    assert report_of(mlp, tree(), torch_mlp(), FEATURES).passed


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"activation": "tanh"}, "between norm and fc", "GELU by tanh is applied where PyTorch applies GELU by erf"),
        ({"epsilon": 1e-3}, "norm", "epsilon"),
        ({"padding": 0}, "conv", "padding"),
        ({"counts_padding": False}, "between norm and fc", "count_include_pad"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_faults_in_linen_are_named(options, where, words):
    report = of_linen(**options)
    assert not report.passed
    assert report.findings[0].where == where
    assert words in report.findings[0].cause, str(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": jax.nn.silu}, "SiLU is applied where PyTorch applies GELU by erf"),
        ({"epsilon": 1e-3}, "epsilon"),
    ],
    ids=["activation", "epsilon"],
)
def test_faults_in_a_function_are_named(options, words):
    report = report_of(partial(mlp, **options), tree(), torch_mlp(), FEATURES)
    assert not report.passed
    assert words in report.findings[0].cause, str(report)


def test_what_no_hypothesis_explains_has_no_cause():
    report = report_of(partial(mlp, activation=lambda x: jnp.sin(3 * x) + 0.1), tree(), torch_mlp(), FEATURES)
    assert not report.passed
    assert "applied where" not in str(report.findings)
    assert "first" in report.findings[0].cause or "arises" in report.findings[0].cause


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        (
            {"approximate": "tanh"},
            "between norm and fc",
            "GELU by tanh is applied where the reference applies GELU by erf",
        ),
        ({"norm": nn.GroupNorm(2, 8, eps=1e-3)}, "norm", "epsilon"),
        ({"conv": nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")}, "conv", "reflect"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_faults_between_two_networks_in_pytorch_are_named(changes, where, words):
    theirs, ours = torch_net(), torch_net(changes.get("approximate", "none"))
    for name, layer in changes.items():
        setattr(ours, name, layer)
    parity.randomize(None, theirs)
    ours.load_state_dict(theirs.state_dict())
    report = parity.check(ours, theirs, IMAGES.transpose(0, 3, 1, 2), checks=("forward", "activations", "gradients"))
    assert not report.passed
    assert report.findings[0].where == where
    assert words in report.findings[0].cause, str(report)
    assert "PyTorch" not in report.findings[0].cause


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"activation": "tanh"}, "between norm and fc", "GELU by tanh is applied where the candidate applies GELU by"),
        ({"epsilon": 1e-3}, "norm", "epsilon is 0.001, the candidate's is 1e-05"),
        ({"padding": 0}, "conv", "the convolution has padding 0, the candidate's 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_faults_of_a_reference_in_linen_are_named(options, where, words):
    ours, network = torch_net(), LinenNet(**options)
    parity.randomize(None, ours)
    variables = parity.to_flax(ours.state_dict(), network.init(jax.random.key(0), IMAGES))
    inputs = IMAGES.transpose(0, 3, 1, 2)
    report = parity.check(ours, (network, variables), inputs, checks=("forward", "activations"))
    assert not report.passed
    assert report.findings[0].where == where
    assert report.findings[0].cause.startswith("in the reference: ")
    assert words in report.findings[0].cause, str(report)
    assert "PyTorch" not in str(report.findings)


class FlaxNorms(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(4, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))
        self.bn = nnx.BatchNorm(8, momentum=0.9, use_fast_variance=False, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(8, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


def test_a_pytorch_candidate_may_count_batches_where_the_reference_does_not():
    layers = {"conv": nn.Conv2d(4, 8, 3, padding=1), "bn": nn.BatchNorm2d(8), "fc": nn.Linear(8, 5)}
    ours, theirs = Torch(layers, lambda s, x: s.fc(torch.relu(s.bn(s.conv(x))).mean((2, 3)))), FlaxNorms()
    parity.randomize(theirs, ours)
    report = parity.check(ours, theirs, IMAGES.transpose(0, 3, 1, 2))
    assert {row.check for row in report.comparisons} >= {"forward", "gradients", "batch_stats", "optimizer"}
    failed = {row.name for row in report.failures}
    assert failed == {"bn.running_var"}  # Flax keeps the biased variance
