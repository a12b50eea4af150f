import numpy as np
import pytest

from parity.fingerprints.distance import DRAWS, Resampling, change, distance
from parity.fingerprints.moments import Moments


def moments_of(inputs: np.ndarray, epsilon: float = 0.0) -> Moments:
    """Of standardised inputs (images, pixels, channels)."""
    mean, square = inputs.mean(1), np.square(inputs).mean(1)
    return Moments(mean.astype(np.float32), square.astype(np.float32), np.full(inputs.shape[-1], epsilon, np.float32))


@pytest.mark.parametrize("ratio", [1e-6, 0.5, 1.0, 3.0, 1e6])
def test_without_a_mean_it_is_the_logarithm_of_the_variance(ratio):
    np.testing.assert_allclose(distance(np.array(0.0), np.array(ratio)), abs(np.log(ratio)), atol=1e-7)


def test_a_small_step_has_the_length_of_fishers_metric():
    mean, variance = 1e-3, 1 + 2e-3
    # ds^2 = dm^2 / v + dv^2 / (2 v^2), times 2
    expected = np.sqrt(2 * mean**2 + (variance - 1) ** 2)
    np.testing.assert_allclose(distance(np.array(mean), np.array(variance)), expected, rtol=3e-3)


def test_it_is_the_same_in_either_direction():
    """From (m, v) to (0, 1) is as far as back, which standardised by the other distribution is (-m / s, 1 / v)."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=50), rng.uniform(0.1, 9, 50)
    np.testing.assert_allclose(distance(mean, variance), distance(-mean / np.sqrt(variance), 1 / variance), rtol=1e-9)


def test_the_first_draw_is_the_images_themselves():
    inputs = np.random.default_rng(1).normal(0.3, 2, (5, 40, 7))
    whole = inputs.reshape(-1, 7)
    expected = np.mean(distance(whole.mean(0), whole.var(0)))
    draws = Resampling(5).discrepancy("a", moments_of(inputs))
    assert draws.shape == (1 + DRAWS,)
    np.testing.assert_allclose(draws[0], expected, rtol=1e-4)


def test_the_change_between_two_candidates():
    """It does not depend on the units, which are those of what the norm was trained with, nor on the order."""
    rng = np.random.default_rng(4)
    one, other = rng.normal(0.3, 2, (5, 40, 7)), rng.normal(-0.2, 1, (5, 40, 7))
    first, second = (inputs.reshape(-1, 7) for inputs in (one, other))
    scale = second.std(0)
    expected = distance((first.mean(0) - second.mean(0)) / scale, first.var(0) / scale**2).mean()
    np.testing.assert_allclose(change(moments_of(one), moments_of(other)), expected, rtol=1e-4)
    np.testing.assert_allclose(change(moments_of(other), moments_of(one)), expected, rtol=1e-4)
    assert change(moments_of(one), moments_of(one)) == 0


def test_draws_are_shared_by_candidates_and_not_by_norms():
    moments = moments_of(np.random.default_rng(2).normal(0.3, 2, (5, 40, 7)))
    resampling = Resampling(5)
    one, again, other = (resampling.discrepancy(name, moments) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(one, again)
    assert one[0] == other[0]
    assert np.any(one[1:] != other[1:])


def test_the_spread_is_that_of_taking_other_images():
    """The bootstrap's standard deviation against that over fresh images of the same kind."""
    rng = np.random.default_rng(3)

    def sample() -> Moments:
        contrast = np.exp(rng.normal(0, 0.5, (24, 1, 1)))  # images differ more than their pixels do
        return moments_of(3 * contrast * rng.normal(size=(24, 64, 60)))

    fresh = np.std([Resampling(24).discrepancy("a", sample())[0] for _ in range(60)])
    drawn = np.mean([Resampling(24, seed).discrepancy("a", sample())[1:].std() for seed in range(20)])
    assert 0.6 < drawn / fresh < 1.6  # the standard deviation over 60 samples has an error of a tenth


def test_dead_channels_are_no_distance_where_the_norm_has_an_epsilon():
    """A channel that is always 0, and was in training: its norm divides by sqrt(epsilon)."""
    dead = Moments(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32), np.ones(1, np.float32))
    assert Resampling(4).discrepancy("a", dead)[0] == 0
    never = Moments(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32), np.zeros(1, np.float32))
    assert np.isfinite(Resampling(4).discrepancy("a", never)).all()
