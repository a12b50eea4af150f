"""What `parity.fingerprint` found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.fingerprints.chain import Candidate, in_words
from parity.fingerprints.search import Difference

INTERVAL = (2.5, 97.5)  # percentiles of a row's own interval


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        candidate: what was assumed.
        draws: (1 + DRAWS,), its discrepancy: the mean over the norms and their channels of
            `parity.fingerprints.distance.distance`, a logarithm of a ratio of variances. Of the best candidate over
            all norms; of any other, the best's and what it is more on the norms where the two were compared.
        difference: from the best candidate; None for that itself.
        curve: {norm: its discrepancy there}.
    """

    candidate: Candidate
    draws: np.ndarray
    difference: Difference | None
    curve: Mapping[str, float]

    @property
    def discrepancy(self) -> float:
        return float(self.draws[0])

    @property
    def interval(self) -> tuple[float, float]:
        """What 95% of the bootstrap's draws lie in."""
        low, high = np.percentile(self.draws[1:], INTERVAL)
        return float(low), float(high)

    @property
    def first_departure(self) -> str | None:
        """The first norm that is told to be worse than with the best candidate; None if the two are not told apart."""
        return self.difference.first if self.difference and self.is_told else None

    @property
    def is_told(self) -> bool:
        """Whether it is told apart from the best candidate."""
        return self.difference is not None and self.difference.is_told


@dataclass(frozen=True, repr=False)
class Fingerprint:
    """The outcome of `parity.fingerprint`; `print(report)` shows a table.

    Attributes:
        title: what the network is called.
        images: their number.
        channels: of them.
        rows: the candidates, the best first, then by discrepancy.

    Examples:
        >>> import numpy as np, parity, torch
        >>> images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8, momentum=None))
        >>> _ = network.train()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        >>> report = parity.fingerprint(network, images)
        >>> report.images, len(report.rows) > 1
        (32, True)
    """

    title: str
    images: int
    channels: int
    rows: Sequence[Row]

    @property
    def best(self) -> Row:
        return self.rows[0]

    def name(self, row: Row) -> str:
        """The candidate in words, of those that are not the best what differs from it."""
        return str(row.candidate) if row is self.best else _changes(row.candidate, self.best.candidate)

    @property
    def undecided(self) -> list[Row]:
        """Those that cannot be told apart from the best."""
        return [row for row in self.rows[1:] if not row.is_told]

    @property
    def confidence(self) -> float:
        """The part of the bootstrap's draws in which no candidate that is told apart is better than the best."""
        told = [row.difference.draws[1:] > 0 for row in self.rows[1:] if row.difference and row.is_told]
        return float(np.mean(np.all(told, axis=0))) if told else 0.0

    @property
    def verdict(self) -> str:
        """In words: what the weights expect, and what could not be decided."""
        if not any(row.is_told for row in self.rows):
            return "nothing can be told: no candidate is further from the weights' statistics than another"
        text = f"the weights expect {self.best.candidate} (in {self.confidence:.1%} of the bootstrap's draws)"
        names = [self.name(row) for row in self.undecided]
        return text + (f"; cannot be told apart: {', '.join(names)}" if names else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        return {
            "network": self.title,
            "images": self.images,
            "candidates": [self._as_dict(row) for row in self.rows],
            "verdict": {
                "text": self.verdict,
                "confidence": self.confidence,
                "cannot_be_told_apart": [number for number, row in enumerate(self.rows) if number and not row.is_told],
            },
        }

    def _as_dict(self, row: Row) -> dict[str, Any]:
        low, high = row.interval
        difference = row.difference
        apart = None
        if difference is not None:
            value, margin = difference.value, difference.margin
            apart = {"value": value, "low": value - margin, "high": value + margin, "told_apart": difference.is_told}
        return {
            **row.candidate.preprocessing.as_dict(self.channels),
            "options": dict(row.candidate.options),
            "discrepancy": row.discrepancy,
            "low": low,
            "high": high,
            "first_departure": row.first_departure,
            "name": str(row.candidate),
            "difference": apart,
            "norms": dict(row.curve),
        }

    def __repr__(self) -> str:
        from parity.fingerprints.output import as_text

        return as_text(self)


def _changes(candidate: Candidate, best: Candidate) -> str:
    """What a candidate has that the best has not."""
    own, other = candidate.preprocessing, best.preprocessing
    if own != other:
        same_constants = (own.name, own.channels) == (other.name, other.channels)
        return ("squeezed to a square" if own.crop is None else f"crop {own.crop}") if same_constants else str(own)
    options = {**dict.fromkeys(best.options), **candidate.options}
    return ", ".join(
        f"not {in_words(name, best.options[name])}" if value is None else in_words(name, value)
        for name, value in options.items()
        if value != best.options.get(name)
    )
