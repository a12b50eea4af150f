"""The checks that train: single optimiser steps, and whole trajectories."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import torch

from parity.checks.optimizers import MOMENTS, Optimizer, moments, with_moments
from parity.checks.pair import Pair
from parity.checks.tolerance import Noise, measure, relative
from parity.reports.results import Comparison
from parity.sides.base import PLAIN, Arrangement, Arrays, Run, torch_layout
from parity.sides.flax import FlaxSide
from parity.sides.torch import TorchSide

PARAMETERS = "parameters"
Moments = dict[str, dict[str, torch.Tensor]]
"""What PyTorch's optimiser keeps: {parameter: {name: tensor}}."""


def optimizer(pair: Pair) -> list[Comparison]:
    """Parameters and moments after each step; every step but the first starts from PyTorch's parameters and moments.

    Free-running networks drift apart by rounding alone, PyTorch from itself included; single steps do not.
    """
    if found := pair.require_same_parameters("optimizer"):
        return found
    pair.forget_runs()  # a large network needs the memory
    ours = FlaxTrainer(pair.ours, pair.optimizer)
    with pair.restored():
        start, kept = {id(side): side.state() for side in pair.torch_sides}, {}
        for step in range(pair.steps):
            rows, state, kept = _compared_step(pair, ours, step, start, kept)
            found += rows
            pair.load(state)
            ours.take_moments(kept, step + 1)
            start = dict.fromkeys(start, state)
    return found


def _compared_step(
    pair: Pair, ours: "FlaxTrainer", step: int, start: dict[int, Arrays], kept: Moments
) -> tuple[list[Comparison], Arrays, Moments]:
    """One step of both from the same state, and PyTorch's parameters, statistics and moments after it."""
    inputs, torch_inputs = pair.batch(step)
    torch_step = partial(_torch_step, pair, start, kept, step, torch_inputs)
    try:
        oracle = torch_step(pair.oracle)
    except Exception:
        pair.run_from_here(inputs, torch_inputs, train=True)  # says whether ours can
        raise
    theirs = oracle if pair.theirs is pair.oracle else torch_step(pair.theirs)
    noise = Noise(_groups(pair, ours, *oracle), scaled=moments(ours.state).keys())
    noise.add(_groups(pair, ours, *theirs))
    for arranged in pair.arranged(partial(torch_step, pair.theirs)):
        noise.add(_groups(pair, ours, *arranged))

    ours.step(step, inputs, pair.targets, pair.loss)
    found: list[Comparison] = []
    for group, values in {PARAMETERS: pair.ours.parts()[0], **moments(ours.state)}.items():
        rows = pair.judge("optimizer", "train", group, pair.ours.state(values), noise, step + 1)
        suffix = "" if group == PARAMETERS else f" {group}"
        found += [replace(row, name=row.name + suffix) for row in rows]
    return found, *theirs


def _torch_step(
    pair: Pair,
    start: dict[int, Arrays],
    kept: Moments,
    step: int,
    inputs: np.ndarray,
    side: TorchSide,
    arrangement: Arrangement = PLAIN,
) -> tuple[Arrays, Moments]:
    """Parameters, statistics and moments after one step from `start` and `kept`."""
    side.load(start[id(side)])
    trainer = TorchTrainer(side, pair.optimizer, kept)
    trainer.step(step, inputs, pair.torch_targets, pair.loss, arrangement)
    return side.state(), trainer.moments()


def _groups(pair: Pair, ours: "FlaxTrainer", state: Arrays, kept: Moments) -> dict[str, Arrays]:
    """PyTorch's parameters, and those of its moments that we have too."""
    groups = {PARAMETERS: {name: state[name] for name in pair.ours.parameters}}
    for moment, values in moments(ours.state).items():
        groups[moment] = {name: _array(kept[name][moment]) for name in values if moment in kept.get(name, {})}
    return groups


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


class FlaxTrainer:
    """Our network under an optimiser: value and gradient, optax, new parameters and statistics."""

    def __init__(self, side: FlaxSide, optimizer: Optimizer):
        self.side, self.optimizer = side, optimizer
        self.transform = optimizer.for_jax()
        self.state = self.transform.init(side.parts()[0])
        self._update = jax.jit(self._updated)

    def _updated(self, gradients: Any, state: Any, parameters: Any, learning_rate: Any) -> Any:
        updates, state = self.transform.update(gradients, state, parameters)
        return optax.apply_updates(parameters, optax.tree.scale(learning_rate, updates)), state

    def step(self, step: int, inputs: np.ndarray, targets: Any, loss: Any) -> Run:
        run = self.side.run(inputs, targets, loss, train=True)
        gradients = self.side.from_torch_layout(run.gradients)
        rate = np.asarray(self.optimizer.learning_rate_at(step), self.side.dtype)
        parameters, self.state = self._update(gradients, self.state, self.side.parts()[0], rate)
        self.side.values |= parameters
        self.side.load(run.statistics)
        return run

    def take_moments(self, kept: Moments, step: int) -> None:
        names = {name for theirs in MOMENTS.values() for name in theirs.values()}
        values = {
            name: self.side.from_torch_layout(
                {key: _array(state[name]) for key, state in kept.items() if name in state}
            )
            for name in names
        }
        self.state = with_moments(self.state, values, step)


class TorchTrainer:
    """PyTorch's network under its optimiser, from the given moments."""

    def __init__(self, side: TorchSide, optimizer: Optimizer, kept: Moments):
        self.side, self.settings = side, optimizer
        self.parameters = dict(side.module.named_parameters())
        self.optimizer = optimizer.for_torch(self.parameters.values())
        for name, state in kept.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                key: value.to(parameter, copy=True) if value.shape == parameter.shape else value.clone()
                for key, value in state.items()
            }

    def step(
        self,
        step: int,
        inputs: np.ndarray,
        targets: Any,
        loss: Any,
        arrangement: Arrangement = PLAIN,
        adjust: Callable[[Run], None] = lambda run: None,
    ) -> Run:
        """One step, counted from 0; `adjust` may change the gradients first."""
        run = self.side.run(inputs, targets, loss, train=True, arrangement=arrangement, record=False)
        adjust(run)
        for name, parameter in self.parameters.items():
            if name in run.gradients:  # not of a frozen one
                gradient = run.gradients[name]
                parameter.grad = torch.as_tensor(gradient, dtype=self.side.dtype, device=self.side.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.side.load(run.statistics)
        return run

    def moments(self) -> Moments:
        """The optimiser's own tensors, which its next step changes."""
        return {
            name: {key: value for key, value in self.optimizer.state[parameter].items() if torch.is_tensor(value)}
            for name, parameter in self.parameters.items()
            if parameter in self.optimizer.state
        }


def trajectory(pair: Pair) -> list[Comparison]:
    """Free-running training on the same batches: the loss at every step, held to PyTorch's noise up to that step."""
    if found := pair.require_same_parameters("trajectory"):
        return found
    batches, torch_batches = _batches(pair)
    accuracies: dict[str, float] = {}

    def train_torch(name: str, side: TorchSide, arrangement: Arrangement) -> list[float]:
        with pair.restored():
            trainer = TorchTrainer(side, pair.optimizer, {})
            losses = [trainer.step(i, *batch, pair.loss, arrangement).loss for i, batch in enumerate(torch_batches)]
            if (share := _accuracy(lambda x: side.run(x, train=False, record=False), torch_batches)) is not None:
                accuracies[name] = share
        pair.curves[name] = losses
        return losses

    oracle = train_torch("PyTorch, float64", pair.oracle, PLAIN)

    def train_arranged(arrangement: Arrangement) -> list[float]:
        return train_torch(f"PyTorch, {pair.precision}, {arrangement.name}", pair.theirs, arrangement)

    arranged = [] if pair.theirs is pair.oracle else [train_arranged(PLAIN)]
    arranged += pair.arranged(train_arranged)
    with pair.restored():
        if pair.train is None:
            trainer = FlaxTrainer(pair.ours, pair.optimizer)
            ours = [trainer.step(i, *batch, pair.loss).loss for i, batch in enumerate(batches)]
        else:
            model = pair.ours.model(train=True)
            ours = pair.train(model, [(pair.ours.array(x), pair.ours.array(y)) for x, y in batches], pair.optimizer)
            pair.ours.take(model)
        pair.curves[f"Flax, {pair.precision}"] = ours
        if (share := _accuracy(lambda x: pair.ours.run(x, train=False), batches)) is not None:
            accuracies["Flax"] = share
    if accuracies:
        ours_right, *theirs_right = accuracies.pop("Flax"), *accuracies.values()
        pair.notes.append(
            f"trajectory: accuracy on the training batches afterwards: Flax {ours_right:.2%}, PyTorch "
            f"{theirs_right[0]:.2%} ({min(theirs_right):.2%} to {max(theirs_right):.2%} over its arrangements)"
        )

    floor = 0.0
    for index, value in enumerate(oracle):
        # Once apart, runs stay apart: the noise at a step is the largest so far.
        distances = [relative(np.asarray(curve[index]), np.asarray(value)) for curve in arranged]
        floor = max([floor, *distances])
        tolerance = max(pair.profile.k * floor, pair.profile.least)
        error = measure(np.asarray(ours[index]), np.asarray(value), precision=pair.precision)
        found.append(Comparison("trajectory", "train", "loss", error, floor, tolerance, index + 1))
    return found


def _batches(pair: Pair) -> tuple[list[tuple[np.ndarray, Any]], list[tuple[np.ndarray, Any]]]:
    """(inputs, targets) for every step, in Flax's layout and in PyTorch's."""
    if pair.batches is None:
        inputs = [pair.batch(step) for step in range(pair.steps)]
        return [(ours, pair.targets) for ours, _ in inputs], [(theirs, pair.torch_targets) for _, theirs in inputs]
    batches = [(np.asarray(inputs), targets) for inputs, targets in pair.batches]
    return batches, [(torch_layout(inputs), torch_layout(targets)) for inputs, targets in batches]


def _accuracy(run: Any, batches: list[tuple[np.ndarray, Any]]) -> float | None:
    """The share of right classes over batches of labels (N,) and logits (N, classes); None for anything else."""
    right = total = 0
    for inputs, labels in batches:
        if isinstance(labels, dict) or np.ndim(labels) != 1 or not np.issubdtype(np.asarray(labels).dtype, np.integer):
            return None
        logits = next(iter(run(inputs).outputs.values()))
        if logits.ndim != 2:
            return None
        right += int((logits.argmax(-1) == labels).sum())
        total += len(labels)
    return right / total
