"""Where two networks part, and why: the first difference that the floor does not explain, then hypotheses."""

from collections.abc import Callable, Mapping

import numpy as np

from parity.checks.given import first_not_finite
from parity.checks.isolation import can_be_taken_apart, isolate, record
from parity.checks.pair import Pair
from parity.checks.tolerance import relative
from parity.diagnosis import losses, optimizers
from parity.diagnosis.causes import causes
from parity.diagnosis.layers import why
from parity.diagnosis.moved_statistics import why_statistics_by_values
from parity.diagnosis.statistics import why_statistics
from parity.reports.results import Comparison, Finding, Report
from parity.sides.base import LOSS, OUTPUT


def diagnose(pair: Pair, report: Report) -> list[Finding]:
    """One finding for each kind of disagreement, without those that follow from an earlier one."""
    failures = {check: [row for row in report.failures if row.check == check] for check in report.seconds}
    findings = [
        finding
        for check in ("weights", "initialization")
        for row in failures.get(check, [])
        if (finding := _noted(row))
    ]
    if not findings and (finding := _different_weights(pair)):
        findings.append(finding)
    if findings:
        return findings
    if narrow := [row for row in report.failures if row.check == "float32"]:
        return [Finding(row.name, row.note) for row in narrow]
    first = next(rows[0] for rows in failures.values() if rows)
    if not first.mode and first.check not in ("weights", "initialization"):
        return [_one_sided(first)]
    for check in ("forward", "activations", "layers"):
        if failures.get(check):
            return _activations(pair, failures[check][0])
    for check, explain in _OTHERS.items():
        if failures.get(check):
            return [explain(pair, failures[check])]
    return findings


def _noted(row: Comparison) -> Finding | None:
    return Finding(row.name, row.note, _evidence(row)) if row.note else None


def _evidence(row: Comparison) -> str:
    return f"relative error {row.error.relative:.1e}, PyTorch's own {row.floor:.1e}"


def _different_weights(pair: Pair) -> Finding | None:
    """Parameters or statistics that differed from the start."""
    theirs = pair.reference.state()
    different = [
        name
        for name, ours in pair.candidate.state().items()
        if name in theirs and not np.array_equal(ours, theirs[name].astype(ours.dtype), equal_nan=True)
    ]
    if not different:
        return None
    first, total = different[0], len(pair.candidate.shapes())
    ours, oracle = pair.candidate.state()[first], theirs[first]
    how = explain_values(ours, oracle) or "another value; parity.to_flax or parity.randomize gives both the same"
    others = f" and {len(different) - 1} more of {total} differ" if len(different) > 1 else " differs"
    return Finding(first, f"{first}{others} from PyTorch's before anything is computed: {how}")


def explain_values(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Why a parameter's value differs, where it is PyTorch's in another layout or type."""
    for axes, words in (((1, 0), "input and output channels"), ((0, 1, 3, 2), "height and width")):
        axes = (*axes, *range(len(axes), ours.ndim)) if ours.ndim >= len(axes) else ()
        if axes and theirs.transpose(axes).shape == ours.shape and np.array_equal(ours, theirs.transpose(axes)):
            return f"the kernel is not transposed as PyTorch's: {words} are swapped"
    if np.array_equal(ours, theirs.astype(np.float16).astype(ours.dtype)):
        return "PyTorch's value rounded to float16"
    if ours.dtype != np.float32 and np.array_equal(ours, theirs.astype(np.float32).astype(ours.dtype)):
        return "PyTorch's value rounded to float32"
    return ""


def _activations(pair: Pair, row: Comparison) -> list[Finding]:
    train = row.mode == "train"
    if row.check == "layers":
        recorded = record(pair, train=train)
        layer = isolate(pair, recorded, row.name, train=train)
        return [Finding(row.name, (why(layer) if layer else "") or f"{row.name} alone differs", _evidence(row))]
    runs = pair.runs(train)
    if nan := first_not_finite(runs.candidate):
        words = f"{nan} is the first of Flax's submodules to give NaN or infinite values"
        return [Finding(nan, words, _evidence(row))]
    try:
        findings = causes(pair, train=train)
    except Exception as error:  # a network that cannot be taken apart is still located
        pair.note(f"the network could not be taken apart to look for causes ({type(error).__name__})")
        findings = []
    return findings or [_located(pair, row)]


def _located(pair: Pair, row: Comparison) -> Finding:
    """The first submodule that differs, where nothing more is known."""
    runs = pair.runs(row.mode == "train")
    rows = pair.judge("activations", row.mode, "activations", runs.candidate.activations, runs.noise)
    failing = [candidate for candidate in rows if not candidate.passed]
    if not failing:
        return Finding("output", "every submodule agrees: the difference arises after the last of them", _evidence(row))
    first = failing[0]
    position = rows.index(first)
    agrees = f"{rows[position - 1].name} agrees" if position else "nothing before it differs"
    return Finding(first.name, f"{first.name} is the first to differ", f"{_evidence(first)}; {agrees}")


def _one_sided(row: Comparison) -> Finding:
    """What only one of the networks has or can compute."""
    if row.name != OUTPUT:
        return Finding(row.name, f"{row.name} is {row.note}")
    if "more than 1 value per channel" in row.note:
        return Finding(
            "train mode",
            "one value per channel in train mode: PyTorch refuses, Flax uses a variance of 0",
            row.note,
        )
    return Finding("", "only one side can compute this")


def _gradients(pair: Pair, failures: list[Comparison]) -> Finding:
    if words := losses.why(pair):
        return Finding("the loss", words, _evidence(failures[0]))
    runs = pair.runs(failures[0].mode == "train")
    if all(row.name == LOSS for row in failures):
        ours, theirs = runs.candidate.loss, float(runs.noise.oracle["loss"][LOSS])
        words = f"the loss is {ours:g}, PyTorch's {theirs:g}, although its gradients agree"
        return Finding(LOSS, words, _evidence(failures[0]))
    failures = [row for row in failures if row.name != LOSS]
    oracle = runs.noise.oracle["gradients"]
    ours = {name: value for name, value in runs.candidate.gradients.items() if name in oracle}
    factor = _common_factor(ours, oracle)
    last = failures[-1] if failures[-1].name in ours else failures[0]
    if factor is not None:
        return Finding(
            "", f"every gradient is {factor:g} times PyTorch's: summed where PyTorch averages?", _evidence(last)
        )
    if not np.any(ours[last.name]):
        return Finding(last.name, f"the gradient of {last.name} is zero: it is stopped on the way", _evidence(last))
    # Gradients run backwards: the last parameter that differs is the nearest to the fault.
    parameters = [row.name for row in failures if not row.name.startswith("(")]
    nearest = parameters[-1] if parameters else failures[0].name
    return Finding(
        nearest,
        f"outputs agree but gradients do not, from {nearest} backwards ({len(failures)} tensors)",
        _evidence(next(row for row in failures if row.name == nearest)),
    )


def _activation_gradients(pair: Pair, failures: list[Comparison]) -> Finding:
    """Gradients run backwards: the last output whose gradient differs is the nearest to the fault."""
    if words := losses.why(pair):
        return Finding("the loss", words, _evidence(failures[0]))
    nearest = failures[-1]
    runs = pair.runs(nearest.mode == "train")
    order = [name for name in runs.noise.oracle["activation_gradients"] if name in runs.candidate.activation_gradients]
    after = order[order.index(nearest.name) + 1 :]
    until = f"that of {after[0]} agrees" if after else "it is the last submodule"
    ours = runs.candidate.activation_gradients[nearest.name]
    stopped = "is zero: it is stopped after it" if not np.any(ours) else "is the first to differ on the way back"
    return Finding(nearest.name, f"the gradient of {nearest.name}'s output {stopped}; {until}", _evidence(nearest))


def _common_factor(ours: Mapping[str, np.ndarray], oracle: Mapping[str, np.ndarray]) -> float | None:
    """c, where every tensor is c times the oracle's."""
    factors = [float(np.vdot(oracle[name], ours[name]) / np.vdot(oracle[name], oracle[name])) for name in ours
               if np.vdot(oracle[name], oracle[name]) > 0]  # fmt: skip
    factor = float(np.median(factors)) if factors else 1.0
    scaled = all(relative(ours[name], factor * oracle[name]) < 1e-6 for name in ours if np.any(oracle[name]))
    return round(factor, 6) if scaled and abs(factor - 1) > 1e-6 else None


def _batch_stats(pair: Pair, failures: list[Comparison]) -> Finding:
    first = failures[0]
    path = first.name.rpartition(".")[0]
    layer = isolate(pair, record(pair, train=True), path, train=True) if can_be_taken_apart(pair) else None
    explanation = why_statistics(layer) if layer else why_statistics_by_values(pair, path)
    explanation = explanation or f"{first.name} is the first statistic to differ"
    return Finding(path, explanation, f"{_evidence(first)}; {len(failures)} statistics differ")


def _optimizer(pair: Pair, failures: list[Comparison]) -> Finding:
    first = failures[0]
    explanation = optimizers.why(pair) or f"{first.name} is the first to differ, in step {first.step}"
    return Finding(f"step {first.step}", explanation, f"{_evidence(first)}; {len(failures)} tensors differ")


def _trajectory(pair: Pair, failures: list[Comparison]) -> Finding:
    first = failures[0]
    return Finding(f"step {first.step}", f"the losses part at step {first.step}", _evidence(first))


_OTHERS: dict[str, Callable[[Pair, list[Comparison]], Finding]] = {
    "activation_gradients": _activation_gradients,
    "gradients": _gradients,
    "batch_stats": _batch_stats,
    "optimizer": _optimizer,
    "trajectory": _trajectory,
}
