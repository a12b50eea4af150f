"""A check makes each pass once, compiles each program once, and keeps no more than one mode's results."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx

import parity
from parity.checks import passes as of_passes
from parity.checks.check import CHECKS, make_pair
from parity.checks.pair import Pair
from parity.sides.base import ARRANGEMENTS
from parity.sides.flax import FlaxSide
from parity.sides.torch import TorchSide
from resnet_flax.layers import BatchNorm, Conv
from resnet_flax.layers.sequential import Sequential
from tests.compilation import compilations

OF_PASSES = ("forward", "activations", "gradients", "batch_stats")


@pytest.fixture
def networks():
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
    rngs = nnx.Rngs(0)
    ours = Sequential([Conv(3, 4, 3, rngs=rngs), BatchNorm(4, rngs=rngs)])
    parity.randomize(ours, theirs)
    return ours, theirs, parity.random_inputs((4, 6, 5, 3))


@pytest.fixture
def passes(monkeypatch):
    """{(framework, train mode?, precision): passes}."""
    counts = Counter()
    for kind in (FlaxSide, TorchSide):

        def run(side, *args, train, _run=kind.run, **options):
            counts[side.framework, train, side.precision] += 1
            return _run(side, *args, train=train, **options)

        monkeypatch.setattr(kind, "run", run)
    return counts


def test_each_pass_is_made_once(networks, passes):
    ours, theirs, inputs = networks
    assert parity.check(ours, theirs, inputs, checks=OF_PASSES).passed
    arrangements = len(ARRANGEMENTS)
    assert passes == {
        ("Flax", False, "float64"): 1,
        ("Flax", True, "float64"): 3,  # the first batch of batch_stats is that of the other checks
        ("Flax", False, "float32"): 1,
        ("PyTorch", False, "float64"): arrangements + 1,  # and one for the shapes of random targets
        ("PyTorch", True, "float64"): 3 * arrangements,
        ("PyTorch", False, "float32"): 1,
    }


def test_modes_are_compared_one_after_another(networks, monkeypatch):
    ours, theirs, inputs = networks
    kept = []
    monkeypatch.setitem(
        CHECKS, "activations", lambda pair: kept.append(sorted(pair._runs)) or of_passes.activations(pair)
    )
    report = parity.check(ours, theirs, inputs, checks=OF_PASSES)
    assert kept == [[False], [True]]
    assert [(row.check, row.mode) for row in report.comparisons] == sorted(
        ((row.check, row.mode) for row in report.comparisons), key=lambda row: (OF_PASSES.index(row[0]), row[1])
    )


def test_a_result_that_is_gone_is_made_again(networks, passes):
    ours, theirs, inputs = networks
    checks = ("batch_stats", "gradients")  # batch_stats keeps nothing
    report = parity.check(ours, theirs, inputs, checks=checks)
    assert report.passed
    assert {row.check for row in report.comparisons} == set(checks)
    assert passes["Flax", True, "float64"] == 4


def test_three_programs_are_compiled(networks):
    ours, theirs, inputs = networks
    with compilations() as programs:
        parity.check(ours, theirs, inputs, checks=OF_PASSES)
    assert len(programs) == 3, programs


def test_a_pair_gives_its_modes_back(networks):
    ours, theirs, inputs = networks
    pair = make_pair(ours, theirs, inputs)
    assert isinstance(pair, Pair)
    with pair.in_mode("train"):
        assert pair.modes == {"train": True}
        assert not pair.is_in_first_mode
    assert pair.modes == {"eval": False, "train": True}
    assert pair.is_in_first_mode
