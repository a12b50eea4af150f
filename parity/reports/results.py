"""What a check found."""

import math
from dataclasses import dataclass, field

from parity.checks.tolerance import Error


@dataclass(frozen=True)
class Comparison:
    """One tensor of ours against the oracle's.

    Attributes:
        check: the check it belongs to.
        mode: "eval" or "train", "" where there is no such thing.
        name: PyTorch's name for it.
        error: its distance from the oracle.
        floor: the largest distance of PyTorch's own arrangements.
        tolerance: the relative error allowed.
        step: of an optimiser or a trajectory, counted from 1.
        note: anything else worth knowing; for a comparison that could not be made, the reason.
        decides: whether the verdict depends on it; it does not on a difference inside two networks that agree in what
            was asked for.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.check(ours, theirs, parity.random_inputs((3, 8)), checks=("forward",))
        >>> [(row.name, row.mode, row.passed) for row in report.comparisons]
        [('output', 'eval', True)]
    """

    check: str
    mode: str
    name: str
    error: Error
    floor: float = 0.0
    tolerance: float = 0.0
    step: int | None = None
    note: str = ""
    decides: bool = True

    @property
    def passed(self) -> bool:
        return self.error.relative <= self.tolerance  # False for NaN

    @property
    def excess(self) -> float:
        """The error in units of the tolerance; infinite for NaN."""
        if math.isnan(self.error.relative):
            return math.inf
        return self.error.relative / self.tolerance if self.tolerance else (math.inf if self.error.relative else 0.0)


@dataclass(frozen=True)
class Finding:
    """Where two networks part, and why if that is known.

    Attributes:
        where: the module, parameter or step; "" for the whole.
        cause: in plain words; "" if no hypothesis explains it.
        evidence: what was measured.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> report = parity.check(ours, theirs, parity.random_inputs((3, 8)))
        >>> [finding.where for finding in report.findings]
        ['weight']
    """

    where: str
    cause: str
    evidence: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.cause, f"({self.evidence})" if self.evidence else "") if part)


@dataclass(repr=False)
class Report:
    """The outcome of `parity.check`; printing shows a table.

    Attributes:
        settings: precision, versions, switches, sizes.
        comparisons: every tensor compared, in order of computation.
        findings: where the two part and why; empty if everything passed.
        curves: {name: loss at each step}, from the trajectory check.
        notes: what was not compared, and why.
        warnings: what the verdict does not cover, although the two may differ in it.
        seconds: time taken by each check.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.check(ours, theirs, parity.random_inputs((3, 8)), checks=("forward", "gradients"))
        >>> report.passed, report.failures, report.findings
        (True, [], [])
    """

    settings: dict
    comparisons: list[Comparison] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it that decides agreed."""
        return any(comparison.decides for comparison in self.comparisons) and not self.failures

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons that decide and did not pass."""
        return [comparison for comparison in self.comparisons if comparison.decides and not comparison.passed]

    @property
    def headline(self) -> str:
        """The verdict in one line, which begins with the cause where one is known."""
        networks = f"{self.settings['flax network']} and {self.settings['torch network']}"
        if self.passed:
            return f"{networks} agree"
        if not self.failures:
            return f"nothing was compared: {networks}"
        first = max(self.failures, key=lambda row: row.excess)
        causes = [finding.cause for finding in self.findings if finding.cause]
        cause = causes[0] if causes else f"{first.name} in {first.check}"
        return f"{' '.join(cause.split())}: {networks} differ"

    def of(self, check: str) -> list[Comparison]:
        """The comparisons of one check."""
        return [comparison for comparison in self.comparisons if comparison.check == check]

    def __repr__(self) -> str:
        from parity.reports.terminal import as_text

        return as_text(self)
