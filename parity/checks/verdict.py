"""Which differences decide, and which only locate."""

from collections.abc import Sequence
from dataclasses import replace

from parity.reports.results import Comparison

LOCATING = ("activations", "activation_gradients")


def located(rows: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """The comparisons, in which those of submodules no longer decide where what was asked for agrees; and notes of it.

    Two right networks may draw the borders of their submodules differently: an activation inside a norm, a kept axis, an
    attention map in another layout. Where outputs, and gradients if they were compared, agree in a mode, such a
    difference has no effect.
    """
    agreeing = {
        row.mode
        for row in rows
        if row.check == "forward"
        and all(o.passed for o in rows if o.mode == row.mode and o.check in ("forward", "gradients"))
    }
    if any(row.check == "gradients" and not row.mode and not row.passed for row in rows):  # a one-sided parameter
        agreeing = set()
    demoted = [row.check in LOCATING and row.mode in agreeing and not row.passed for row in rows]
    notes = [
        f"{check}: {_listed(differing)} on the two sides ({mode} mode), but the outputs"
        f"{' and gradients' if any(row.check == 'gradients' for row in rows) else ''} agree: the submodules have other "
        "borders or layouts, or what differs is not used"
        for check in LOCATING
        for mode in sorted(agreeing)
        if (
            differing := [
                r
                for r, is_demoted in zip(rows, demoted, strict=True)
                if is_demoted and (r.check, r.mode) == (check, mode)
            ]
        )
    ]
    return [replace(row, decides=not is_demoted) for row, is_demoted in zip(rows, demoted, strict=True)], notes


def _listed(rows: Sequence[Comparison], limit: int = 5) -> str:
    named = [f"{row.name} ({row.note})" if row.note else row.name for row in rows[:limit]]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{', '.join(named)}{more} {'differs' if len(rows) == 1 else 'differ'}"
