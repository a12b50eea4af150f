"""The checks that train: single optimiser steps, and whole trajectories."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from parity.checks.pair import Both, Pair
from parity.checks.tolerance import Noise, measure, relative
from parity.reports.results import Comparison
from parity.sides.arguments import map_arrays
from parity.sides.base import PLAIN, Arrangement, Arrays, Reference, Side, Trainer, relaid
from parity.sides.optimizers import Moments
from parity.sides.trainers import as_array

PARAMETERS = "parameters"


class Step(NamedTuple):
    """What the reference holds after an optimiser step: parameters and statistics, moments, and floors known of it."""

    state: Arrays
    moments: Moments
    floors: dict[str, dict[str, float]]


def optimizer(pair: Pair) -> list[Comparison]:
    """Parameters and moments after each step; every step but the first starts from PyTorch's parameters and moments.

    Free-running networks drift apart by rounding alone, PyTorch from itself included; single steps do not.
    """
    if not pair.trains("optimizer"):
        return []
    if rows := pair.one_sided_parameters("optimizer"):
        return rows
    pair.forget_runs()  # a large network needs the memory
    trainer = pair.candidate.trainer(pair.optimizer)
    with pair.restored():
        start, kept = {id(side): side.state() for side in pair.references}, {}
        for step in range(pair.steps):
            compared, state, kept = _compared_step(pair, trainer, step, start, kept)
            rows += compared
            pair.load(state)
            trainer.take_moments(kept, step + 1)
            start = dict.fromkeys(start, state)
    return rows


def _compared_step(
    pair: Pair, trainer: Trainer, step: int, start: dict[int, Arrays], kept: Moments
) -> tuple[list[Comparison], Arrays, Moments]:
    """One step of both from the same state, and the reference's parameters, statistics and moments after it."""
    inputs = pair.batch(step)
    reference_step = partial(_reference_step, pair, start, kept, step, inputs.reference)
    try:
        oracle = reference_step(pair.oracle)
    except Exception:
        pair.run_from_here(inputs, train=True)  # raises OneSided where the candidate can
        raise
    reference = oracle if pair.reference is pair.oracle else reference_step(pair.reference)
    trainer.step(step, inputs.candidate, pair.targets.candidate, pair.loss)
    known = {moment: list(arrays) for moment, arrays in _by_moment(trainer.moments()).items()}
    noise = Noise(_groups(pair, known, oracle), scaled=known.keys())
    noise.add(_groups(pair, known, reference))

    def distances(arrangement: Arrangement) -> dict[str, dict[str, float]]:  # alone: no step is kept beside the next
        return noise.distances(_groups(pair, known, reference_step(pair.reference, arrangement)))

    for floors in pair.arranged(distances):
        noise.add_floors(floors)
    noise.add_floors(oracle.floors)
    if pair.observe_step is not None:
        pair.observe_step(step, oracle.state, oracle.moments, noise)

    state = pair.candidate.state()
    parameters = {name: state[name] for name in pair.candidate.parameters}
    rows: list[Comparison] = []
    for group, values in {PARAMETERS: parameters, **_by_moment(trainer.moments())}.items():
        suffix = "" if group == PARAMETERS else f" {group}"
        judged = pair.judge("optimizer", "train", group, values, noise, step + 1)
        rows += [replace(row, name=row.name + suffix) for row in judged]
    return rows, reference.state, reference.moments


def _reference_step(
    pair: Pair,
    start: dict[int, Arrays],
    kept: Moments,
    step: int,
    inputs: Any,
    side: Reference,
    arrangement: Arrangement = PLAIN,
) -> Step:
    """One step from `start` and `kept`."""
    side.load(start[id(side)])
    trainer = side.trainer(pair.optimizer)
    trainer.take_moments(kept, step)
    run = trainer.step(step, inputs, pair.targets.reference, pair.loss, arrangement)
    return Step(side.state(), trainer.moments(), run.floors)


def _by_moment(kept: Moments) -> dict[str, Arrays]:
    """{moment: {parameter: array}}."""
    moments: dict[str, Arrays] = {}
    for name, state in kept.items():
        for moment, value in state.items():
            moments.setdefault(moment, {})[name] = as_array(value)
    return moments


def _groups(pair: Pair, known: dict[str, list[str]], step: Step) -> dict[str, Arrays]:
    """The reference's parameters, and those of its moments that the candidate has too."""
    kept = step.moments
    groups = {PARAMETERS: {name: step.state[name] for name in pair.candidate.parameters}}
    for moment, names in known.items():
        groups[moment] = {name: as_array(kept[name][moment]) for name in names if moment in kept.get(name, {})}
    return groups


def trajectory(pair: Pair) -> list[Comparison]:
    """Free-running training on the same batches: the loss at every step, held to PyTorch's noise up to that step."""
    if not pair.trains("trajectory"):
        return []
    if rows := pair.one_sided_parameters("trajectory"):
        return rows
    batches = _batches(pair)
    accuracies: dict[str, float] = {}

    def train_reference(name: str, side: Reference, arrangement: Arrangement) -> list[float]:
        with pair.restored():
            trainer = side.trainer(pair.optimizer)
            losses = [trainer.step(i, *b, pair.loss, arrangement).loss for i, b in enumerate(batches.reference)]
            if (share := _accuracy(side, batches.reference)) is not None:
                accuracies[name] = share
        pair.curves[name] = losses
        return losses

    framework = pair.oracle.framework
    oracle = train_reference(f"{framework}, float64", pair.oracle, PLAIN)

    def train_arranged(arrangement: Arrangement) -> list[float]:
        return train_reference(f"{framework}, {pair.precision}, {arrangement.name}", pair.reference, arrangement)

    arranged = [] if pair.reference is pair.oracle else [train_arranged(PLAIN)]
    arranged += pair.arranged(train_arranged)
    name = pair.candidate.framework
    with pair.restored():
        if pair.train is None:
            trainer = pair.candidate.trainer(pair.optimizer)
            losses = [trainer.step(i, *batch, pair.loss).loss for i, batch in enumerate(batches.candidate)]
        else:
            losses = pair.candidate.train_with(pair.train, batches.candidate, pair.optimizer)
        pair.curves[f"{name}, {pair.precision}"] = losses
        if (share := _accuracy(pair.candidate, batches.candidate)) is not None:
            accuracies[name] = share
    if accuracies:
        right, *others = accuracies.pop(name), *accuracies.values()
        pair.notes.append(
            f"trajectory: accuracy on the training batches afterwards: {name} {right:.2%}, {framework} "
            f"{others[0]:.2%} ({min(others):.2%} to {max(others):.2%} over its arrangements)"
        )

    floor = 0.0
    for index, value in enumerate(oracle):
        # Once apart, runs stay apart: the noise at a step is the largest so far.
        distances = [relative(np.asarray(curve[index]), np.asarray(value)) for curve in arranged]
        floor = max([floor, *distances])
        tolerance = max(pair.profile.k * floor, pair.profile.least)
        error = measure(np.asarray(losses[index]), np.asarray(value), precision=pair.precision)
        rows.append(Comparison("trajectory", "train", "loss", error, floor, tolerance, index + 1))
    return rows


def _batches(pair: Pair) -> Both:
    """[(inputs, targets)] for every step, for either side."""
    if pair.batches is None:
        steps = [pair.batch(step) for step in range(pair.steps)]
        return Both(
            [(inputs.candidate, pair.targets.candidate) for inputs in steps],
            [(inputs.reference, pair.targets.reference) for inputs in steps],
        )
    batches = [(map_arrays(np.asarray, inputs), targets) for inputs, targets in pair.batches]
    others = [tuple(relaid(part, pair.candidate, pair.oracle) for part in batch) for batch in batches]
    return Both(batches, others)


def _accuracy(side: Side, batches: list[tuple[Any, Any]]) -> float | None:
    """The share of right classes over batches of labels (N,) and logits (N, classes); None for anything else."""
    right = total = 0
    for inputs, labels in batches:
        if isinstance(labels, dict) or np.ndim(labels) != 1 or not np.issubdtype(np.asarray(labels).dtype, np.integer):
            return None
        logits = next(iter(side.run(inputs, train=False).outputs.values()))
        if logits.ndim != 2:
            return None
        right += int((logits.argmax(-1) == labels).sum())
        total += len(labels)
    return right / total
