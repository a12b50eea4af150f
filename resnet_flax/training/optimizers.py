"""Optimisers and learning-rate schedules by name, built from optax's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from resnet_flax.training.config import OptimizerConfig, ScheduleConfig
from resnet_flax.training.state import Network, match_paths

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int) -> Schedule:
    """step -> learning rate.

    The warm-up rises linearly from `warmup_start` times the learning rate; what follows runs over the remaining epochs.
    With `schedule_unit="epoch"` the rate changes between epochs only, as torchvision's references have it; its
    `LinearLR` followed by `StepLR`, `CosineAnnealingLR` or `PolynomialLR` gives the same values.
    """
    end, unit = config.end_factor * learning_rate, config.schedule_unit
    warmup, step_length = config.warmup_epochs * steps_per_epoch, config.step_epochs * steps_per_epoch
    span = config.epochs * steps_per_epoch - warmup
    match config.schedule:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "step":
            # By comparison: of a quotient, rounded, the whole part may come too late.
            falls = dict.fromkeys(range(step_length, span + 1, step_length), config.step_factor)
            main = optax.piecewise_constant_schedule(learning_rate, falls)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, span, alpha=config.end_factor)
        case "linear":
            main = optax.polynomial_schedule(learning_rate, end, 1, span)
        case "poly":
            main = optax.polynomial_schedule(learning_rate, end, config.poly_power, span)
    if warmup:
        rise = optax.linear_schedule(config.warmup_start * learning_rate, learning_rate, warmup)
        main = optax.join_schedules([rise, main], [warmup])

    def schedule(step):
        return jnp.asarray(main(step // steps_per_epoch * steps_per_epoch if unit == "epoch" else step))

    return schedule


def scale_by_learning_rate(
    schedule: Schedule, multipliers: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Turns directions into updates, -rate * multiplier * direction, at the training state's own step.

    Unlike optax's, it keeps no count, so that a step whose update is skipped cannot put the two out of line.
    """

    def update(updates, state, params=None, *, step=0, **_):
        rate = -jnp.asarray(schedule(step))
        return {
            name: (rate * multipliers.get(name, 1.0)).astype(value.dtype) * value for name, value in updates.items()
        }, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(network: Network, no_decay: tuple[str, ...]) -> dict[str, bool]:
    """Which trained parameters decay; `no_decay` may name "norm" (scale and bias of norms) and "bias" (all others)."""

    def kind(path: str) -> str:
        module, _, leaf = path.rpartition(".")
        return "norm" if f"{module}.mean" in statistics else leaf

    statistics = set(network.statistics)
    return {path: kind(path) not in no_decay for path in network.parameters if path not in network.frozen}


def make_optimizer(
    config: OptimizerConfig, schedule: Schedule, network: Network
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of flat dicts {path: array}; its `update` also takes `step`, the training state's.

    Weight decay is coupled (added to the gradient, as in PyTorch's SGD and Adam) or decoupled (multiplied by the
    learning rate only, as in AdamW). LARS: You et al., arXiv:1708.03888, without trust ratios for norms and biases.
    LAMB: You et al., arXiv:1904.00962.

    Raises:
        UserError: if a pattern of `learning_rate_multipliers` matches no parameter.
    """
    mask = decay_mask(network, config.no_decay)
    trusted = decay_mask(network, ("norm", "bias"))
    multipliers: dict[str, float] = {}
    for pattern, factor in config.learning_rate_multipliers:
        multipliers.update(dict.fromkeys(match_paths(pattern, network.parameters), factor))

    name = config.optimizer
    rate = scale_by_learning_rate(schedule, multipliers)
    decay = [optax.add_decayed_weights(config.weight_decay, mask)] if config.weight_decay else []
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if name == "lars":
        # The trust ratio acts on gradient and decay together, and the momentum on what the rate has scaled.
        trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient), trusted)
        return optax.chain(*clip, *decay, trust, rate, optax.trace(config.momentum))

    momentum = optax.trace(config.momentum, nesterov=name == "nesterov")
    adam = optax.scale_by_adam(*config.betas, eps=config.epsilon)
    direction = {"sgd": optax.identity(), "momentum": momentum, "nesterov": momentum}.get(name, adam)
    parts = [direction, *decay] if config.decay_is_decoupled else [*decay, direction]
    trust = [optax.masked(optax.scale_by_trust_ratio(), trusted)] if name == "lamb" else []
    return optax.chain(*clip, *parts, *trust, rate)
