"""The checks of single passes: outputs, activations, gradients, running statistics, layers alone."""

from dataclasses import replace

import numpy as np

from parity.checks.isolation import isolate, record
from parity.checks.pair import Pair
from parity.checks.tolerance import agreement, measure
from parity.reports.results import Comparison

BATCHES = 3  # for running statistics


def forward(pair: Pair) -> list[Comparison]:
    """The outputs, in eval and in train mode."""
    rows = []
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        outputs, oracle = runs.candidate.outputs, runs.noise.oracle["outputs"]
        for row in pair.judge("forward", mode, "outputs", outputs, runs.noise):
            rows.append(_with_agreement(row, outputs[row.name], oracle[row.name]))
    return rows


def _with_agreement(comparison: Comparison, logits: np.ndarray, oracle: np.ndarray) -> Comparison:
    if comparison.note or oracle.ndim != 2 or oracle.shape[1] < 2:
        return comparison
    ks = [k for k in (1, 5) if k < oracle.shape[1]]
    shares = ", ".join(f"top-{k} {agreement(logits, oracle, k):.0%}" for k in ks)
    return replace(comparison, note=shares)


def activations(pair: Pair) -> list[Comparison]:
    """The output of every submodule that both sides have, in order of computation, in eval and in train mode."""
    rows = []
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        rows += pair.judge("activations", mode, "activations", runs.candidate.activations, runs.noise)
    if not rows:
        pair.note("activations: the two networks have no submodule in common")
    return rows


def gradients(pair: Pair) -> list[Comparison]:
    """The loss's gradient for every parameter and for the inputs, relative to the model's whole gradient."""
    rows = pair.one_sided_parameters("gradients")
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        rows += pair.judge("gradients", mode, "gradients", runs.candidate.gradients, runs.noise)
    return rows


def batch_stats(pair: Pair) -> list[Comparison]:
    """Running statistics after each of three train-mode batches; every batch but the first starts from PyTorch's."""
    rows = []
    if "train" not in pair.modes:
        pair.note("batch_stats: the networks keep no statistics")
        return rows
    with pair.restored():
        for step in range(BATCHES):
            runs = pair.run_from_here(pair.batch(step), train=True, backward=False)
            rows += pair.judge("batch_stats", "train", "statistics", runs.candidate.statistics, runs.noise, step + 1)
            pair.load(runs.reference.statistics)
    return rows


def layers(pair: Pair) -> list[Comparison]:
    """Every layer alone on the input that PyTorch's had, in eval mode: what low precision costs it, and no more."""
    rows = []
    recorded = record(pair, train=False)
    parents = {path.rpartition(".")[0] for path in recorded.reference_inputs}
    for path in recorded.reference_inputs:
        layer = isolate(pair, recorded, path, train=False) if path not in parents else None
        if layer is not None:
            error = measure(layer.output(), layer.expected, precision=pair.precision)
            rows.append(Comparison("layers", "eval", path, error, layer.floor, layer.limit))
    return rows
