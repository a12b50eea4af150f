"""Errors measured all at once are those of each channel alone, and what is computed once stays right."""

import math

import numpy as np
import pytest

from parity.checks.tolerance import Expected, Noise, measure, relative

RNG = np.random.default_rng(0)
SHARE = 1e-4
ROUNDING = 64 * 2.0**-53  # of sums of a few dozen squares, in another order


def alone(actual, oracle, axis):
    """The largest error of the whole and of each channel, from their definitions."""
    size = math.sqrt((oracle**2).mean())
    pairs = [(actual, oracle), *zip(np.moveaxis(actual, axis, 0), np.moveaxis(oracle, axis, 0), strict=True)]
    errors = []
    for number, (ours, theirs) in enumerate(pairs):
        least = SHARE * size * math.sqrt(theirs.size) if number else 0.0
        errors.append(math.sqrt(((ours - theirs) ** 2).sum()) / max(math.sqrt((theirs**2).sum()), least))
    return max(errors)


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 1), ((2, 3, 4), 2), ((2, 6, 3, 4), 1), ((1, 1), 1)])
@pytest.mark.parametrize("tiny", [1.0, 1e-3, 1e-9])
def test_channels_all_at_once(shape, axis, tiny):
    oracle = RNG.normal(size=shape)
    scales = np.ones(shape[axis])
    scales[0] = tiny  # a channel beside which the others are large
    oracle *= scales.reshape([-1 if number == axis else 1 for number in range(len(shape))])
    actual = oracle + 1e-7 * RNG.normal(size=shape)
    assert relative(actual, oracle, share=SHARE) == pytest.approx(alone(actual, oracle, axis), rel=ROUNDING)


def test_a_channel_of_zeros_counts_as_a_share_of_the_whole():
    oracle = np.array([[0.0, 3.0], [0.0, 4.0]])
    actual = oracle + np.array([[1e-6, 0.0], [0.0, 0.0]])
    least = SHARE * math.sqrt(25 / 4) * math.sqrt(2)
    assert relative(actual, oracle, share=SHARE) == pytest.approx(1e-6 / least, rel=ROUNDING)
    assert relative(oracle, oracle, share=SHARE) == 0
    assert relative(np.zeros((2, 2)), np.zeros((2, 2)), share=SHARE) == 0
    assert relative(np.ones((2, 2)), np.zeros((2, 2)), share=SHARE) == math.inf


def test_masks_are_found_in_each_channel():
    oracle = np.array([[-1e9, 1.0], [2.0, 1.0]])
    actual = oracle + np.array([[0.0, 0.0], [2e-3, 0.0]])
    assert relative(actual, oracle, share=SHARE) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("where", [0, 1])
def test_nan_stays(where):
    pair = [np.ones((2, 3)), np.ones((2, 3))]
    pair[where][0, 0] = np.nan
    assert math.isnan(relative(*pair, share=SHARE))
    assert math.isnan(measure(*pair).relative)


def test_what_is_known_of_the_oracle_is_what_is_computed_without():
    for oracle in (RNG.normal(size=(3, 4)), np.array([np.inf, 1.0]), np.array([True, False]), np.zeros((0, 2)),
                   np.array([5000.0, 1.0, 2.0]), np.array([1 + 2j, 3j])):  # fmt: skip
        actual = oracle.astype(complex if oracle.dtype.kind == "c" else float) * (1 + 1e-3)
        expected = Expected(oracle)
        assert relative(actual, expected) == relative(actual, expected) == relative(actual, oracle)


def test_noise_keeps_the_largest_distance_of_each_tensor():
    oracle = {"outputs": {"output": RNG.normal(size=(4, 3))}}
    noise = Noise(oracle)
    others = [{"outputs": {"output": oracle["outputs"]["output"] * (1 + step)}} for step in (1e-9, 1e-6, 1e-8)]
    for other in others:
        noise.add(other)
    assert noise.floors == noise.distances(others[1])
    assert noise.floors["outputs"]["output"] == pytest.approx(1e-6, rel=1e-6)
