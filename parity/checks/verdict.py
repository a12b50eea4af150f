"""Which differences decide, and which only locate."""

from collections.abc import Sequence
from dataclasses import replace

from parity.reports.results import Comparison

LOCATING = ("activations", "activation_gradients")


def located(rows: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """The comparisons, in which those of submodules no longer decide where what was asked for agrees; and notes of it.

    Two right networks may draw the borders of their submodules differently: an activation inside a norm, a kept axis,
    an attention map in another layout. Where outputs, and gradients if they were compared, agree in a mode, such a
    difference has no effect.
    """
    deciding = [row for row in rows if row.check in ("forward", "gradients")]
    disagreeing = {row.mode for row in deciding if not row.passed}
    agreeing = {row.mode for row in deciding if row.check == "forward"} - disagreeing
    if "" in disagreeing:  # a parameter that only one side has
        agreeing = set()
    what = "outputs and gradients" if any(row.check == "gradients" for row in rows) else "outputs"
    judged, noted = [], {}
    for row in rows:
        only_locates = row.check in LOCATING and row.mode in agreeing and not row.passed
        judged.append(replace(row, decides=not only_locates))
        if only_locates:
            noted.setdefault((row.check, row.mode), []).append(row)
    return judged, [
        f"{check}: {_listed(differing)} on the two sides ({mode} mode), but the {what} agree: the submodules have "
        "other borders or layouts, or what differs is not used"
        for (check, mode), differing in noted.items()
    ]


def _listed(rows: Sequence[Comparison], limit: int = 5) -> str:
    named = [f"{row.name} ({row.note})" if row.note else row.name for row in rows[:limit]]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{', '.join(named)}{more} {'differs' if len(rows) == 1 else 'differ'}"
