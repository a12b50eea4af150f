"""The checks of single passes: outputs, activations, gradients, running statistics, layers alone."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from parity.checks.isolation import isolate, record
from parity.checks.narrow import in_float32
from parity.checks.pair import Pair
from parity.checks.tolerance import agreement, measure
from parity.reports.results import Comparison
from parity.sides.base import LOSS
from parity.sides.flax import FlaxSide

BATCHES = 3  # for running statistics


def forward(pair: Pair) -> list[Comparison]:
    """The outputs, in eval and in train mode, and whether they overflow in float32."""
    rows = []
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        outputs, oracle = runs.candidate.outputs, runs.noise.oracle["outputs"]
        for row in pair.judge("forward", mode, "outputs", outputs, runs.noise):
            rows.append(_with_agreement(row, outputs[row.name], oracle[row.name]))
    if pair.precision == "float64" and pair.is_in_first_mode and all(row.passed for row in rows):
        rows += in_float32(pair, train=next(iter(pair.modes.values())))
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
        _tell_unrecorded(pair, runs.candidate.activations, runs.noise.oracle["activations"])
    if not rows:
        pair.note("activations: the two networks have no submodule in common")
    return rows


def _tell_unrecorded(pair: Pair, ours: Collection[str], theirs: Collection[str]) -> None:
    """Warns of submodules of a network in JAX whose calls only the other's recording holds; notes uneven calls."""
    sides = (pair.candidate, pair.oracle)
    for side, names, others in zip(sides, (ours, theirs), (theirs, ours), strict=True):
        if not isinstance(side, FlaxSide):
            continue
        own = side.module_paths()
        called = {name.partition("#")[0] for name in others}
        recorded = {_module(name, own) for name in names}
        lost = [path for path in own if path in called and path not in recorded]
        if lost:
            pair.warn(
                f"activations: {', '.join(lost[:8])}{' and more' if len(lost) > 8 else ''} of the {side.framework} "
                f"network {'was' if len(lost) == 1 else 'were'} not seen: not called, or called inside jit, remat or a "
                "scan"
            )
    if not isinstance(pair.candidate, FlaxSide):
        return
    own = pair.candidate.module_paths()
    for path in sorted({_module(name, own) for name in ours} & {name.partition("#")[0] for name in theirs}):
        numbered = f"{path}#"
        counts = [sum(name == path or name.startswith(numbered) for name in names) for names in (ours, theirs)]
        if counts[0] != counts[1]:
            pair.note(
                f"activations: {path} is called {counts[0]} times in {sides[0].framework} and {counts[1]} times in "
                f"{sides[1].framework}; its calls are compared in order"
            )


def _module(name: str, paths: Collection[str]) -> str:
    """The module that an activation is of: its name may have the place in a structure after the path."""
    path = name.partition("#")[0]
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path


def activation_gradients(pair: Pair) -> list[Comparison]:
    """The loss's gradient for the output of every submodule that both sides have, in order of computation."""
    rows = []
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        ours = runs.candidate.activation_gradients
        rows += pair.judge("activation_gradients", mode, "activation_gradients", ours, runs.noise)
    if not rows:
        pair.note("activation_gradients: the two networks have no submodule in common")
    return rows


def gradients(pair: Pair) -> list[Comparison]:
    """The loss, and its gradient for every parameter and for the inputs, relative to the model's whole gradient."""
    rows = pair.one_sided_parameters("gradients") if pair.is_in_first_mode else []
    for mode, train in pair.modes.items():
        runs = pair.runs(train)
        loss = {LOSS: np.asarray(runs.candidate.loss)}
        if "loss" in runs.noise.oracle:
            rows += pair.judge("gradients", mode, "loss", loss, runs.noise)
        rows += pair.judge("gradients", mode, "gradients", runs.candidate.gradients, runs.noise)
    return rows


def batch_stats(pair: Pair) -> list[Comparison]:
    """Running statistics after each of three train-mode batches; every batch but the first starts from PyTorch's."""
    rows = []
    if not pair.candidate.has_train_mode:
        pair.note("batch_stats: the networks keep no statistics")
        return rows
    if not pair.trains("batch_stats"):
        return rows
    with pair.restored(parameters=False):
        for step in range(BATCHES):
            known = pair.runs_so_far(train=True) if step == 0 else None  # the first batch is that of the other checks
            pair.forget_runs()  # a large network needs the memory
            runs = known or pair.run_from_here(pair.batch(step), train=True, backward=False)
            known = None
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
