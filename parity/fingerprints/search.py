"""The search for the candidate whose norms are given what they were trained with, from the input inward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from parity.fingerprints.chain import Candidate, Chain
from parity.fingerprints.distance import DRAWS, Resampling, change
from parity.fingerprints.preprocessing import Preprocessing, crops

LINKS = (2, 4)
"""On how many links two candidates are compared, from where they part: if the first number does not tell them apart, on
the second. Further on, both depend more on what the images show and less on what was computed."""
GROWTH = 4.0
"""How many times larger the difference between two candidates may become on more links: from two links of a ResNet-50
to four it becomes up to three times as large."""
LEVEL = 0.05
"""The chance that some rival is told apart from the best by an accident of which images were taken."""
PASSES = 3


@dataclass(frozen=True)
class Difference:
    """How much larger a rival's discrepancy is than the best's, on the norms where the two were compared.

    Attributes:
        draws: (1 + DRAWS,), as `Resampling` has them: the mean over the norms.
        links: which these were: from the first to before the second.
        error: its standard error.
        margin: half the width of the interval around `value` that holds for all rivals at once.
        change: how far what the rival gives these norms is from what the best gives them.
        rest: the discrepancy there of the better of the two, which it leaves unexplained.
        first: the first norm that tells the two apart; None if none does by itself.
    """

    draws: np.ndarray
    links: tuple[int, int]
    error: float
    margin: float
    change: float
    rest: float
    first: str | None

    @property
    def value(self) -> float:
        return float(self.draws[0])

    @property
    def is_small(self) -> bool:
        """Whether the two differ by less than what the better of them leaves unexplained.

        The interval is for other images of the same kind. That these are of another kind than the training set is part
        of what is unexplained, and may favour any change that is smaller.
        """
        return self.change <= self.rest

    @property
    def is_told(self) -> bool:
        """Whether the interval excludes zero, and the difference is not small."""
        return abs(self.value) > self.margin and not self.is_small


class Search:
    """Finds the best of the preprocessings and options, and how far the others are from it.

    First the preprocessing is judged by the norms of the first link, which see the images before anything that an
    option changes. Then the options, those that take effect first before the others, each with the best of everything
    so far; one is taken only if it is told apart from the plain network. Then all is judged again, until nothing
    changes.

    Args:
        chain: the network.
        known: preprocessings, the most usual first.
        alternatives: {option: values other than the plain network's}.
        resampling: of the images.
        start: the candidate to start from.
        crops: whether the ways to make images square are judged too.
    """

    def __init__(
        self,
        chain: Chain,
        known: Sequence[Preprocessing],
        alternatives: Mapping[str, Sequence[Any]],
        resampling: Resampling,
        start: Candidate,
        *,
        crops: bool,
    ):
        self._chain, self._known, self._alternatives = chain, known, alternatives
        self._resampling, self._crops, self.best = resampling, crops, start
        self._discrepancies: dict[tuple[Candidate, str], np.ndarray] = {}
        self._count = len(known) + sum(map(len, alternatives.values())) + 2 * crops  # rivals

    def run(self) -> dict[Candidate, Difference]:
        """Sets `best`, and returns how far each rival is from it."""
        for number in range(PASSES):
            before = self.best
            self._chain.places = {self._chain.parting(rival, self.best) for rival in self._of_options()}
            self._choose_constants((1,) if number == 0 else (1, *LINKS))
            self._choose_options()
            if number and self.best == before:
                break
        rivals = (*self._of_constants(), *self._of_crops(), *self._of_options())
        return {rival: self._compared(rival, self.best) for rival in rivals if rival != self.best}

    def discrepancy(self, candidate: Candidate, start: int, stop: int) -> dict[str, np.ndarray]:
        """{norm: (1 + DRAWS,)} for the links from `start` to before `stop`."""
        found = {}
        for name, moments in self._chain.profile(candidate, start, stop).items():
            if (candidate, name) not in self._discrepancies:
                self._discrepancies[candidate, name] = self._resampling.discrepancy(name, moments)
            found[name] = self._discrepancies[candidate, name]
        return found

    def _compared(self, rival: Candidate, best: Candidate, links: Sequence[int] = ()) -> Difference:
        """The two on the links from where they part, on more and more of them until these tell them apart.

        Where the images differ, one link comes first.
        """
        start = self._chain.parting(rival, best)
        for count in links or ((1, *LINKS) if rival.preprocessing != best.preprocessing else LINKS):
            difference = self._difference(rival, best, start, min(start + count, self._chain.depth))
            if difference.is_told or difference.change * GROWTH < difference.rest:
                break
        return difference

    def _difference(self, rival: Candidate, best: Candidate, start: int, stop: int) -> Difference:
        theirs, own = (self.discrepancy(candidate, start, stop) for candidate in (rival, best))
        apart = {name: theirs[name] - own[name] for name in own}
        if not apart:  # they differ after the last norm only
            return Difference(np.zeros(1 + DRAWS), (start, stop), 0.0, 0.0, 0.0, 0.0, None)
        together = np.mean(list(apart.values()), axis=0)
        given, best_given = (self._chain.profile(candidate, start, stop) for candidate in (rival, best))
        changed = np.mean([change(given[name], best_given[name]) for name in own])
        rest = min(np.mean([draws[0] for draws in side.values()]) for side in (theirs, own))
        first = next((name for name, draws in apart.items() if draws[0] > self._errors * _error(draws)), None)
        error = _error(together)
        return Difference(together, (start, stop), error, self._errors * error, float(changed), float(rest), first)

    @property
    def _errors(self) -> float:
        """How many standard errors a difference must have to be none of chance's, with as many rivals (Bonferroni)."""
        return NormalDist().inv_cdf(1 - LEVEL / 2 / self._count)

    def _of_constants(self) -> list[Candidate]:
        """The best's network with each of the preprocessings."""
        own = self.best.preprocessing
        return [Candidate(replace(known, crop=own.crop), self.best.options) for known in self._known]

    def _of_crops(self) -> list[Candidate]:
        ways = crops(self.best.preprocessing) if self._crops else ()
        return [Candidate(images, self.best.options) for images in ways]

    def _of_options(self) -> list[Candidate]:
        """The best with one option of its network changed."""
        changed = [
            self.best.having(option, value)
            for option, values in self._alternatives.items()
            for value in (None, *values)
            if self.best.options.get(option) != value
        ]
        return [candidate for candidate in changed if self._chain.has(candidate)]

    def _become(self, candidate: Candidate) -> None:
        self.best = candidate
        self._chain.refer_to(candidate)

    def _choose_constants(self, links: Sequence[int]) -> None:
        """Takes the most usual preprocessing within a standard error of the lowest discrepancy (Breiman's rule).

        Or the most usual that differs from the lowest by less than what that leaves unexplained.
        """
        known = self._of_constants()
        lowest = known[0]
        for rival in known[1:]:
            if self._compared(rival, lowest, links).value < 0:
                lowest = rival
        for candidate in known:
            apart = self._compared(candidate, lowest, links)
            if not apart.is_told and (apart.value <= apart.error or apart.is_small):
                self._become(candidate)
                return

    def _choose_options(self) -> None:
        """From the input inward, takes what is told to be better, as long as there is anything."""
        start: int | None = 0
        while start is not None:
            rivals = [*self._of_crops(), *self._of_options()]
            places = {rival: self._chain.parting(rival, self.best) for rival in rivals}
            start = min((place for place in places.values() if start <= place < self._chain.depth), default=None)
            here = {rival: self._compared(rival, self.best) for rival, place in places.items() if place == start}
            better = {rival: apart.value for rival, apart in here.items() if apart.is_told and apart.value < 0}
            if better:
                self._become(min(better, key=lambda rival: better[rival]))
            elif start is not None:
                start += 1


def _error(draws: np.ndarray) -> float:
    return float(draws[1:].std(ddof=1))
