"""What only float32 shows: a forward pass in it beside the one in float64."""

import numpy as np

from parity.checks.given import first_not_finite
from parity.checks.pair import Pair
from parity.checks.tolerance import Error, relative
from parity.reports.results import Comparison
from parity.sides.base import aligned
from parity.sides.recorded import RecordedSide

CHECK = "float32"
WORSE, TIMES_WORSE = 1e-3, 1e3
"""From which error in float32 on, and from how many times the reference's own, the candidate's is worth a warning."""


def in_float32(pair: Pair, *, train: bool) -> list[Comparison]:
    """A failure for each output that overflows in the candidate alone.

    A warning where the reference's is not finite either, or where the candidate is far less exact than the reference.
    Nothing else of this pass counts: float64 is what finds faults.
    """
    if isinstance(pair.oracle, RecordedSide):  # recorded in one precision
        return []
    oracle = pair.runs(train).noise.oracle["outputs"]
    mode, ours_is, theirs_is = "train" if train else "eval", pair.candidate.framework, pair.oracle.framework
    theirs = pair.oracle.at(CHECK).run(pair.inputs.reference, train=train, record=False)
    run = pair.candidate.at(CHECK).run(pair.inputs.candidate, train=train)
    ours = aligned(run, theirs, pair.candidate, pair.oracle)
    rows = []
    for name, expected in oracle.items():
        good = np.isfinite(expected)
        lost, lost_too = (bool((good & ~np.isfinite(side.outputs[name])).any()) for side in (ours, theirs))
        if lost and not lost_too:
            first = first_not_finite(run)
            note = f"NaN or infinite in float32, first in {first}; {theirs_is}'s float32 and both float64 are finite"
            rows.append(Comparison(CHECK, mode, name, Error(np.inf, np.inf, np.inf, 0.0), note=note))
        elif lost or lost_too:
            which = "both networks" if lost else theirs_is
            pair.warn(f"{name} has NaN or infinite values in float32 in {which}, but not in float64")
        else:
            error, floor = (relative(side.outputs[name], expected) for side in (ours, theirs))
            if error > max(TIMES_WORSE * floor, WORSE):
                pair.warn(f"in float32 {name} is {error:.0e} off, {theirs_is}'s {floor:.0e}: {ours_is} loses precision")
    return rows
