"""Known reasons why an optimiser step differs from PyTorch's, each tried on gradients made for telling them apart."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.checks.pair import Pair
from parity.checks.tolerance import PROFILES, relative
from parity.diagnosis.update_rules import Rule, Tree

STEPS = 8
CLIPS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


def why(pair: Pair) -> str:
    """The hypothesis under which PyTorch's rule makes our updates, in plain words; "" if none or several do."""
    parameters, gradients = _probe(pair)
    rule = _rule_of(pair, parameters, gradients)
    if rule is None:
        return ""
    # In bfloat16, too, parameters and updates are float32.
    limit = 1e-9 if pair.precision == "float64" else 100 * PROFILES["float32"].least
    ours, theirs = _our_updates(pair, parameters, gradients), rule.updates(parameters, gradients)
    if _distance(ours, theirs) <= limit:
        return ""
    found = [
        words
        for words, changed in _hypotheses(rule)
        if _distance(ours, changed.updates(parameters, gradients)) <= limit
    ]
    if found:
        return found[0] if len(set(found)) == 1 else "either " + ", or ".join(dict.fromkeys(found))
    return _factors(rule, ours, parameters, gradients, limit)


def _probe(pair: Pair) -> tuple[Tree, list[Tree]]:
    """Parameters, and gradients that grow and shrink by orders of magnitude, some of them smaller than any epsilon."""
    rng = np.random.default_rng(0)
    state = pair.reference.state()
    parameters = {name: rng.normal(size=state[name].shape) for name in pair.candidate.parameters}
    sizes = 10.0 ** rng.permutation(np.linspace(-2, 1, STEPS))
    gradients = []
    for size in sizes:
        draw = {name: size * rng.normal(size=value.shape) for name, value in parameters.items()}
        for value in draw.values():
            value *= 10.0 ** rng.uniform(-6, 0, value.shape)
        gradients.append(draw)
    return parameters, gradients


def _our_updates(pair: Pair, parameters: Tree, gradients: Sequence[Tree]) -> list[Tree]:
    transform, settings = pair.optimizer.for_jax(), pair.optimizer
    update: Any = jax.jit(transform.update)
    values = {name: jnp.asarray(value, jnp.float64) for name, value in parameters.items()}
    state = transform.init(values)
    updates = []
    for step, gradient in enumerate(gradients):
        change, state = update({name: jnp.asarray(g) for name, g in gradient.items()}, state, values)
        rate = settings.learning_rate_at(step)
        updates.append({name: rate * np.asarray(value, np.float64) for name, value in change.items()})
    return updates


def _rule_of(pair: Pair, parameters: Tree, gradients: Sequence[Tree]) -> Rule | None:
    """PyTorch's optimiser as a rule; None if it is one that is not known."""
    tensors = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in parameters.items()}
    optimizer = pair.optimizer.for_torch(tensors.values())
    if len(optimizer.param_groups) != 1:
        return None
    group: dict[str, Any] = optimizer.param_groups[0]
    rule = _read(type(optimizer).__name__, group)
    if rule is None:
        return None
    rule = replace(rule, rate=pair.optimizer.learning_rate_at)
    theirs = []
    for step, gradient in enumerate(gradients):
        group["lr"] = pair.optimizer.learning_rate_at(step)
        for name, tensor in tensors.items():
            tensor.data = torch.from_numpy(parameters[name].copy())
            tensor.grad = torch.from_numpy(gradient[name].copy())
        optimizer.step()
        theirs.append({name: tensor.detach().numpy() - parameters[name] for name, tensor in tensors.items()})
    return rule if _distance(theirs, rule.updates(parameters, gradients)) <= 1e-8 else None


def _read(kind: str, group: dict[str, Any]) -> Rule | None:
    decay = group.get("weight_decay", 0.0)
    if kind == "SGD":
        return Rule(decay=decay, momentum=group["momentum"], dampening=group["dampening"], nesterov=group["nesterov"])
    if kind in ("Adam", "AdamW"):
        return Rule(
            "adam",
            decay=decay,
            decoupled=kind == "AdamW" or group.get("decoupled_weight_decay", False),
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            epsilon=group["eps"],
            amsgrad=group["amsgrad"],
        )
    return None


def _hypotheses(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """What the candidate may do otherwise, in words, and the rule that does."""
    yield from _decays(rule)
    yield from _schedules(rule)
    yield from _clips(rule)
    if rule.kind == "sgd":
        words = "off" if rule.nesterov else "on"
        yield f"Nesterov's momentum is {words}", replace(rule, nesterov=not rule.nesterov)
        for momentum in {0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99} - {rule.momentum}:
            words = f"momentum is {momentum:g}, PyTorch's is {rule.momentum:g}"
            yield words, replace(rule, momentum=momentum)
        for dampening in {0.0, rule.momentum} - {rule.dampening}:
            words = f"the momentum is dampened by {dampening:g}, PyTorch's by {rule.dampening:g}"
            yield words, replace(rule, dampening=dampening)
        if rule.momentum:
            words = "the learning rate is multiplied in before the momentum, PyTorch's after it"
            yield words, replace(rule, rate_in_momentum=True)
        return
    for epsilon in {1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-10, 1e-12, 1e-15, 0.0} - {rule.epsilon}:
        words = f"Adam's epsilon is {epsilon:g}, PyTorch's is {rule.epsilon:g}"
        yield words, replace(rule, epsilon=epsilon)
    for epsilon in (rule.epsilon, rule.epsilon**2):
        words = (
            f"Adam's epsilon ({epsilon:g}) is added under the square root, PyTorch adds {rule.epsilon:g} to the root"
        )
        yield words, replace(rule, epsilon=epsilon, inside=True)
    yield f"AMSGrad is {'off' if rule.amsgrad else 'on'}", replace(rule, amsgrad=not rule.amsgrad)
    yield "Adam's bias correction is missing", replace(rule, corrected=False)
    for first in {0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 0.99} - {rule.betas[0]}:
        words = f"Adam's first beta is {first:g}, PyTorch's is {rule.betas[0]:g}"
        yield words, replace(rule, betas=(first, rule.betas[1]))
    for second in {0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999} - {rule.betas[1]}:
        words = f"Adam's second beta is {second:g}, PyTorch's is {rule.betas[1]:g}"
        yield words, replace(rule, betas=(rule.betas[0], second))


def _decays(rule: Rule) -> Iterator[tuple[str, Rule]]:
    if not rule.decay:
        for decay in (1e-4, 5e-4, 1e-3, 1e-2, 5e-2, 0.1):
            for decoupled in (False, True):
                words = f"weight decay is {decay:g}{' (decoupled)' if decoupled else ''}, PyTorch has none"
                yield words, replace(rule, decay=decay, decoupled=decoupled)
        return
    yield (
        "weight decay is coupled (added to the gradient), PyTorch's is decoupled"
        if rule.decoupled
        else "weight decay is decoupled (added to the update, not to the gradient)",
        replace(rule, decoupled=not rule.decoupled),
    )
    words = "weight decay leaves out biases and norms, PyTorch decays every parameter"
    yield words, replace(rule, decays=lambda _, array: array.ndim > 1)
    words = "weight decay leaves out biases only, PyTorch decays every parameter"
    yield words, replace(rule, decays=lambda name, _: not name.endswith("bias"))
    words = "weight decay leaves out everything but biases and norms, PyTorch decays every parameter"
    yield words, replace(rule, decays=lambda _, array: array.ndim <= 1)
    yield "weight decay is missing", replace(rule, decay=0.0)
    for words, factor in (("half", 0.5), ("twice", 2.0), ("a tenth of", 0.1), ("ten times", 10.0)):
        yield f"weight decay is {words} PyTorch's", replace(rule, decay=factor * rule.decay)


def _clips(rule: Rule) -> Iterator[tuple[str, Rule]]:
    kinds = {
        "global": "by their global norm",
        "each": "by each parameter's own norm",
        "value": "value by value",
    }
    for limit in CLIPS:
        for norm, how in kinds.items():
            words = f"gradients are clipped {how} to {limit:g}, PyTorch's are not clipped"
            yield words, replace(rule, clip=(norm, limit))
            if rule.decay and not rule.decoupled:
                words = (
                    f"gradients are clipped {how} to {limit:g} after weight decay is added, PyTorch's are not clipped"
                )
                yield words, replace(rule, clip=(norm, limit), clip_after=True)


def _schedules(rule: Rule) -> Iterator[tuple[str, Rule]]:
    rate = rule.rate
    yield "the learning rate is the next step's", replace(rule, rate=lambda step: rate(step + 1))
    yield "the learning rate is the step before's", replace(rule, rate=lambda step: rate(max(step - 1, 0)))
    yield "the learning rate stays that of the first step", replace(rule, rate=lambda step: rate(0))
    for every in range(2, STEPS):
        words = f"the learning rate changes only every {every} steps (once an epoch?)"
        yield words, replace(rule, rate=lambda step, every=every: rate(step // every))


def _factors(rule: Rule, ours: list[Tree], parameters: Tree, gradients: Sequence[Tree], limit: float) -> str:
    """Gradients times a number, or updates times a number that may change from step to step."""
    theirs = rule.updates(parameters, gradients)
    factors = [_projected(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    scaled = [{n: f * v for n, v in other.items()} for f, other in zip(factors, theirs, strict=True)]
    if _distance(ours, scaled) <= limit:
        if np.ptp(factors) <= limit * abs(factors[0]):
            return _constant(rule, factors[0])
        rates = [factor * rule.rate(step) for step, factor in enumerate(factors)]
        wanted = [rule.rate(step) for step in range(STEPS)]
        return f"the learning rates are {_numbers(rates)}, PyTorch's {_numbers(wanted)}: another schedule"
    if rule.kind == "sgd":
        # The first update is linear in the gradients' factor.
        nothing = replace(rule, factor=0.0).updates(parameters, gradients[:1])[0]
        move, other = ({n: v - nothing[n] for n, v in tree.items()} for tree in (ours[0], theirs[0]))
        factor = _projected(move, other)
        if _distance(ours, replace(rule, factor=factor).updates(parameters, gradients)) <= limit:
            return f"the update is what gradients {factor:g} times PyTorch's would give"
    return ""


def _constant(rule: Rule, factor: float) -> str:
    words = f"the update is {factor:g} times PyTorch's"
    if rule.kind == "sgd" and not rule.decay:
        return f"{words}: its learning rate, or the gradients, are {factor:g} times as large"
    return f"{words}: its learning rate is {factor:g} times as large"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _projected(ours: Tree, theirs: Tree) -> float:
    mine, other = (np.concatenate([tree[name].ravel() for name in theirs]) for tree in (ours, theirs))
    square = float(other @ other)
    return float(mine @ other) / square if square else 1.0


def _distance(ours: Sequence[Tree], theirs: Sequence[Tree]) -> float:
    return max(relative(mine[name], other[name]) for mine, other in zip(ours, theirs, strict=True) for name in mine)
