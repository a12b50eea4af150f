"""Known reasons why an optimiser step differs from PyTorch's, each tried out on PyTorch's side."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.checks.isolation import flax_and_torch
from parity.checks.pair import Pair
from parity.checks.tolerance import relative
from parity.sides.base import PLAIN, Arrays, Run
from parity.sides.optimizers import Optimizer

STEPS = 2


def why(pair: Pair) -> str:
    """The first hypothesis under which PyTorch takes the same two steps as we do; "" if there is none."""
    settings = pair.optimizer
    decay, rate_at = settings.weight_decay, settings.learning_rate_at

    def decoupled(names: list[str], rate: float, start: Arrays) -> Arrays:
        return {name: -rate * decay * start[name] for name in names}

    ours = _candidate_steps(pair)
    matrices = {name for name, array in ours[0].items() if array.ndim > 1}
    everything = set(ours[0])
    usual = (set(), everything) if settings.kind == "adamw" else (everything, set())
    # Words, PyTorch's settings, parameters whose decay goes into the gradient, and those where it goes past it.
    hypotheses: list[tuple[str, Optimizer, set[str], set[str]]] = [
        ("weight decay is decoupled (added to the update, not to the gradient)", settings, set(), everything),
        ("weight decay is coupled (added to the gradient), PyTorch's is decoupled", settings, everything, set()),
        ("weight decay leaves out biases and norms, PyTorch decays every parameter", settings, matrices, set()),
        ("weight decay leaves out biases and norms, PyTorch decays every parameter", settings, set(), matrices),
        ("weight decay is missing", settings, set(), set()),
        (
            "Nesterov's momentum is " + ("off" if settings.nesterov else "on"),
            replace(settings, nesterov=not settings.nesterov),
            *usual,
        ),
        ("the learning rate is the next step's", replace(settings, learning_rate=lambda i: rate_at(i + 1)), *usual),
        (
            "the learning rate is the step before's",
            replace(settings, learning_rate=lambda i: rate_at(max(i - 1, 0))),
            *usual,
        ),
    ]
    for words, changed, coupled, past in hypotheses:
        if settings.torch_optimizer is None and _same(pair, ours, changed, coupled, past, decoupled):
            return words
    if factor := _gradient_factor(pair, ours):
        return f"the update is what gradients {factor:g} times PyTorch's would give"
    return ""


def _candidate_steps(pair: Pair) -> list[Arrays]:
    with pair.restored():
        trainer = pair.candidate.trainer(pair.optimizer)
        steps = []
        for step in range(STEPS):
            trainer.step(step, pair.batch(step).candidate, pair.targets.candidate, pair.loss)
            state = pair.candidate.state()
            steps.append({name: state[name] for name in pair.candidate.parameters})
        return steps


def _reference_steps(
    pair: Pair, settings: Optimizer, coupled: set[str], past: set[str], decoupled: Callable, factor: float = 1.0
) -> list[Arrays]:
    """Two steps of PyTorch's optimiser, whose own weight decay is taken over here."""
    decay = settings.weight_decay
    bare = replace(settings, weight_decay=0.0)
    (_, side), kept = flax_and_torch(pair), {}
    with pair.restored():
        steps = []
        for step in range(STEPS):
            trainer = side.trainer(bare)
            trainer.take_moments(kept, step)
            start = side.state()

            def adjust(run: Run, start=start) -> None:
                for name in run.gradients.keys() & start.keys():
                    run.gradients[name] = factor * run.gradients[name] + (decay * start[name] if name in coupled else 0)

            trainer.step(step, pair.batch(step).reference, pair.targets.reference, pair.loss, PLAIN, adjust)
            kept = trainer.moments()
            state = side.state()
            change = decoupled(sorted(past), settings.learning_rate_at(step), start)
            side.load({name: state[name] + change[name] for name in change})
            steps.append(side.state())
        return steps


def _same(
    pair: Pair,
    ours: list[Arrays],
    settings: Optimizer,
    coupled: set[str],
    past: set[str],
    decoupled: Callable,
    factor: float = 1.0,
) -> bool:
    theirs = _reference_steps(pair, settings, coupled, past, decoupled, factor)
    limit = max(1e-8, 100 * pair.profile.least)
    return all(
        relative(mine[name], their[name]) <= limit for mine, their in zip(ours, theirs, strict=True) for name in mine
    )


def _gradient_factor(pair: Pair, ours: list[Arrays]) -> float | None:
    """c, where the first step is PyTorch's with gradients times c, for SGD."""
    if pair.optimizer.kind != "sgd":
        return None
    everything = set(ours[0])
    none = lambda names, rate, start: {}  # noqa: E731
    with_, without = (
        _reference_steps(pair, pair.optimizer, everything, set(), none, factor)[0] for factor in (1.0, 0.0)
    )
    largest = max(ours[0], key=lambda name: np.linalg.norm(with_[name] - without[name]))
    move = (with_[largest] - without[largest]).ravel()
    factor = float(move @ (ours[0][largest] - without[largest]).ravel() / (move @ move)) if np.any(move) else 1.0
    if abs(factor - 1) < 1e-6 or not _same(pair, ours, pair.optimizer, everything, set(), none, factor):
        return None
    return round(factor, 6)
