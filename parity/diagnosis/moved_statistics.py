"""Known reasons for other running statistics, read off what one batch did to them, for networks of any framework."""

import numpy as np

from parity.checks.pair import Pair
from parity.checks.tolerance import relative

NOISE = 1e-9  # of differences between statistics in float64, which lose digits where a batch moves them little


def why_statistics_by_values(pair: Pair, path: str) -> str:
    """Why a norm's statistics differ after one train-mode batch; "" if no hypothesis explains it.

    The reference's statistic s becomes s + share (batch - s), ours s + factor share (r batch - s). For means r
    is 1; for a variance that is biased where the reference's is not, it is (n-1)/n. The factor follows from the means,
    and the share from the variances where r is not 1.
    """
    names = mean, var = f"{path}.running_mean", f"{path}.running_var"
    before = pair.reference.state()
    with pair.restored():
        runs = pair.run_from_here(pair.batch(0), train=True, record=True, backward=False)
    ours, theirs = runs.candidate, runs.reference
    if not all(name in arrays for name in names for arrays in (before, ours.statistics, theirs.statistics)):
        return ""
    moved = {name: np.asarray(ours.statistics[name] - before[name], np.float64) for name in names}
    wanted = {name: np.asarray(theirs.statistics[name] - before[name], np.float64) for name in names}
    if not any(np.any(moved[name]) for name in names):
        return f"running statistics of {path} do not change in train mode"
    factor = _ratio(moved[mean], wanted[mean])
    if not relative(moved[mean], factor * wanted[mean]) <= NOISE:
        return ""
    reference = pair.oracle.framework
    times = f"{factor:.6g} times as far as in {reference}"
    of_momentum = f"one batch moves the running statistics of {path} {times}: another momentum"
    if relative(moved[var], factor * wanted[var]) <= NOISE:
        return of_momentum if abs(factor - 1) > NOISE else ""
    output = theirs.activations.get(path)
    count = 0 if output is None else output.size // before[var].size
    for is_biased in (True, False) if count > 1 else ():
        r = (count - 1) / count if is_biased else count / (count - 1)
        share = _ratio(moved[var] - factor * r * wanted[var], factor * (r - 1) * before[var])
        explained = factor * (r * wanted[var] + share * (r - 1) * before[var])
        if 0 < share <= 1 and relative(moved[var], explained) <= NOISE:
            which, other, times = ("biased", "unbiased", "n/(n-1)") if is_biased else ("unbiased", "biased", "(n-1)/n")
            of_bias = (
                f"running variance of {path} is {which}: {reference} keeps the {other} variance, {times} times that "
                f"(n = {count})"
            )
            return of_bias if abs(factor - 1) <= NOISE else f"{of_momentum}; and the {of_bias}"
    return ""


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The c for which c times theirs is nearest to ours."""
    return float(np.vdot(theirs, ours) / max(np.vdot(theirs, theirs), np.finfo(np.float64).tiny))
