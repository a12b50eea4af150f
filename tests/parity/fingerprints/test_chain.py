"""A network as each of its candidates: the same moments whatever was run before, and nothing twice."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from parity.fingerprints.chain import Candidate, Chain
from parity.fingerprints.moments import Moments
from parity.fingerprints.photographs import Photographs
from parity.fingerprints.preprocessing import preprocessings

RUNS: list[int] = []
DEPTH = 6
PLAIN = Candidate(preprocessings(1)[0])


@dataclass(frozen=True)
class Link:
    """Adds a number, after a norm that is given the input."""

    place: int
    added: float

    def __call__(self, x):
        RUNS.append(self.place)
        epsilon = np.zeros(x.shape[-1], np.float32)
        return x + self.added, {str(self.place): Moments(x.mean((1, 2)), np.square(x).mean((1, 2)), epsilon)}

    def statistics(self):
        return []


def links(options):
    """An option "from3" changes what the links from the third on add."""
    changes = {int(name.removeprefix("from")): value for name, value in options.items()}
    return [Link(n, 1.0 + sum(v for place, v in changes.items() if place <= n)) for n in range(DEPTH)]


@pytest.fixture
def chain():
    images = Photographs([np.full((2, 2, 1), value, np.uint8) for value in (10, 90)], None)
    found = Chain(links, images, PLAIN)
    found.places = {2, 4}
    RUNS.clear()
    return found


def means(profile):
    return {name: moments.mean[:, 0].tolist() for name, moments in profile.items()}


def expected(candidate, start, stop):
    x = [float(value) for value in candidate.preprocessing(np.array([[[[10]]], [[[90]]]], np.uint8)).ravel()]
    found = {}
    for link in links(candidate.options):
        if start <= link.place < stop:
            found[str(link.place)] = x
        x = [value + link.added for value in x]
    return found


def test_any_order_of_questions_has_the_same_answers(chain):
    random = np.random.default_rng(0)
    candidates = [PLAIN, replace(PLAIN, preprocessing=preprocessings(1)[2])]
    candidates += [one.having(f"from{place}", 2.0) for one in candidates for place in (0, 2, 3, 5)]
    for number in range(200):
        candidate = candidates[random.integers(len(candidates))]
        start, stop = sorted(random.integers(0, DEPTH + 1, 2))
        found = means(chain.profile(candidate, start, stop))
        assert found.keys() == expected(candidate, start, stop).keys()
        for name, values in expected(candidate, start, stop).items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5)
        if number % 20 == 0:
            chain.refer_to(candidates[random.integers(len(candidates))])


def test_nothing_is_run_twice(chain):
    chain.profile(PLAIN, 0, DEPTH)
    assert RUNS == [0, 1, 2, 3, 4, 5]
    RUNS.clear()
    rival = PLAIN.having("from2", 2.0)
    chain.profile(rival, 2, 4)
    assert RUNS == [2, 3]  # from where it parts
    chain.profile(rival, 2, 6)
    assert RUNS == [2, 3, 4, 5]
    chain.profile(rival, 0, 6)
    assert RUNS == [2, 3, 4, 5]


def test_from_a_place_that_is_not_kept_it_starts_before(chain):
    chain.profile(PLAIN, 0, DEPTH)
    RUNS.clear()
    chain.profile(PLAIN.having("from3", 2.0), 3, 4)
    assert RUNS == [2, 3]
