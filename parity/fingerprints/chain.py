"""Candidates, and a network that is run as each of them, without computing anything twice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parity.errors import UsageError
from parity.fingerprints.links import Link
from parity.fingerprints.moments import Profile, joined
from parity.fingerprints.photographs import Photographs
from parity.fingerprints.preprocessing import Preprocessing


@dataclass(frozen=True)
class Candidate:
    """How images may have come to the network, and what it may have computed.

    Attributes:
        preprocessing: of the images.
        options: of the network, that differ from the plain one.
    """

    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.preprocessing, str(sorted(self.options.items()))))

    def __str__(self) -> str:
        options = ", ".join(in_words(name, value) for name, value in self.options.items())
        return f"{self.preprocessing}" + (f"; {options}" if options else "")

    def having(self, option: str, value: Any) -> "Candidate":
        """The same with this option, or with None without it."""
        others = {name: own for name, own in self.options.items() if name != option}
        return replace(self, options=others if value is None else others | {option: value})


def in_words(option: str, value: Any) -> str:
    """An option of a network, such as "activation silu" or "max_pool_ceil"."""
    return option if value is True else f"no {option}" if value is False else f"{option} {value}"


Links = Callable[[Mapping[str, Any]], Sequence[Link]]
"""The links of the network that has these options; there are equally many whatever the options."""


class Chain:
    """A network, or what the same weights make with other options.

    Of one candidate, the reference, activations are kept at the places where others part from it.

    Args:
        links: of each network.
        images: that go through them.
        reference: the first one.

    Attributes:
        depth: the number of links.
        places: links whose inputs are kept.
    """

    def __init__(self, links: Links, images: Photographs, reference: Candidate):
        self._links_of, self._images = links, images
        self._links: dict[str, Sequence[Link] | UsageError] = {}
        self._profiles: dict[Candidate, list[Profile]] = {}  # a profile for each link
        self._reference = reference
        self._inputs: dict[int, list[Any]] = {}  # of the reference's links
        self._reached: tuple[Candidate, int, list[Any]] | None = (
            None  # the last other one, and the input of its next link
        )
        self.depth = len(self._network(reference))
        self.places: set[int] = set()

    def _network(self, candidate: Candidate) -> Sequence[Link]:
        key = str(sorted(candidate.options.items()))
        if key not in self._links:
            try:
                self._links[key] = self._links_of(candidate.options)
            except UsageError as error:  # some options exclude each other
                self._links[key] = error
        links = self._links[key]
        if isinstance(links, UsageError):
            raise links
        return links

    def has(self, candidate: Candidate) -> bool:
        """Whether there is such a network."""
        try:
            self._network(candidate)
        except UsageError:
            return False
        return True

    def refer_to(self, reference: Candidate) -> None:
        """Makes a candidate the one whose activations are kept."""
        shared = self.parting(reference, self._reference)
        self._inputs = {place: inputs for place, inputs in self._inputs.items() if place <= shared} if shared else {}
        self._reference = reference

    def parting(self, one: Candidate, other: Candidate) -> int:
        """The first link that differs between two candidates; `depth` if none does, 0 if their images do."""
        if one.preprocessing != other.preprocessing:
            return 0
        pairs = zip(self._network(one), self._network(other), strict=True)
        return next((number for number, (a, b) in enumerate(pairs) if a != b), self.depth)

    def profile(self, candidate: Candidate, start: int, stop: int) -> Profile:
        """What the norms of a candidate's links from `start` to before `stop` are given."""
        known = self._profiles.setdefault(candidate, [])
        if len(known) < stop:
            self._run(candidate, known, stop)
        return {name: moments for part in known[start:stop] for name, moments in part.items()}

    def _run(self, candidate: Candidate, known: list[Profile], stop: int) -> None:
        shared = self.parting(candidate, self._reference)
        if shared and candidate != self._reference:
            self.profile(self._reference, 0, min(shared, stop))
            known += self._profiles[self._reference][len(known) : min(shared, stop)]
        start, batches = self._nearest(candidate, min(shared, len(known)), len(known))
        for number, link in enumerate(self._network(candidate)[start:stop], start):
            results = [link(batch) for batch in batches]
            batches = [output for output, _ in results]
            if number == len(known):
                known.append(joined([profile for _, profile in results]))
            if candidate == self._reference and number + 1 in self.places:
                self._inputs[number + 1] = batches
        self._reached = candidate, stop, batches

    def _nearest(self, candidate: Candidate, shared: int, known: int) -> tuple[int, list[Any]]:
        """The last link that has been reached, not after `known`, and its input; `shared` links are the reference's."""
        place = max((place for place in self._inputs if place <= shared), default=0)
        if self._reached and self._reached[0] == candidate and place < self._reached[1] <= known:
            return self._reached[1:]
        return place, self._inputs[place] if place else self._images.batches(candidate.preprocessing)
