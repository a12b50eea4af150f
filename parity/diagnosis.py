"""Where two networks part, and why."""

from parity.pair import Pair
from parity.results import Finding, Report


def diagnose(pair: Pair, report: Report) -> list[Finding]:
    """The first place where the two part by more than the floor explains."""
    first = report.failures[0] if report.failures else None
    return [Finding(first.name, "", f"relative error {first.error.relative:.1e}")] if first else []
