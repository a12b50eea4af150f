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
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.preprocessing}" + (f"; {options}" if options else "")

    def having(self, option: str, value: Any) -> "Candidate":
        """The same with this option, or with None without it."""
        others = {name: own for name, own in self.options.items() if name != option}
        return replace(self, options=others if value is None else others | {option: value})


Links = Callable[[Mapping[str, Any]], Sequence[Link]]
"""The links of the network that has these options; there are equally many whatever the options."""


class Chain:
    """A network, or what the same weights make with other options.

    The activations between the links are kept of one candidate, the reference, from which the others part.

    Attributes:
        depth: the number of links.
    """

    def __init__(self, links: Links, images: Photographs, reference: Candidate):
        self._links_of, self._images = links, images
        self._links: dict[str, Sequence[Link] | UsageError] = {}
        self._profiles: dict[Candidate, list[Profile]] = {}  # a profile for each link
        self._reference = reference
        self._inputs: list[list[Any]] = [images.batches(reference.preprocessing)]  # of its links, as far as it was run
        self.depth = len(self._network(reference))

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
        self._inputs = self._inputs[: shared + 1] if shared else [self._images.batches(reference.preprocessing)]
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
        is_reference = candidate == self._reference
        shared = self.parting(candidate, self._reference)
        if shared and not is_reference:
            self.profile(self._reference, 0, min(shared, stop))
            known += self._profiles[self._reference][len(known) : min(shared, stop)]
        start = min(shared, len(self._inputs) - 1)
        batches = self._inputs[start] if shared else self._images.batches(candidate.preprocessing)
        for number, link in enumerate(self._network(candidate)[start:stop], start):
            results = [link(batch) for batch in batches]
            batches = [output for output, _ in results]
            if is_reference and number + 1 == len(self._inputs):
                self._inputs.append(batches)
            if number == len(known):
                known.append(joined([profile for _, profile in results]))
