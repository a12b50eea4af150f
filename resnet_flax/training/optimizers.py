"""Optimisers and learning-rate schedules by name, built from optax's parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from resnet_flax.errors import UserError
from resnet_flax.training.config import OptimizerConfig, ScheduleConfig
from resnet_flax.training.state import Network, match_paths

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int) -> Schedule:
    """step -> learning rate.

    The warm-up rises linearly from `warmup_start` times the learning rate; the schedule covers the remaining epochs.
    With `schedule_unit="epoch"` the rate changes only between epochs and equals that of torchvision's references:
    `LinearLR` followed by `StepLR`, `CosineAnnealingLR` or `PolynomialLR`.
    """
    end, unit = config.end_factor * learning_rate, config.schedule_unit
    warmup, step_length = config.warmup_epochs * steps_per_epoch, config.step_epochs * steps_per_epoch
    span = config.epochs * steps_per_epoch - warmup
    match config.schedule:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "step":
            # By comparing steps: the integer part of a rounded quotient may change one step late.
            falls = dict.fromkeys(range(step_length, span + 1, step_length), config.step_factor)
            main = optax.piecewise_constant_schedule(learning_rate, falls)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, span, alpha=config.end_factor)
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
    """Turns directions into updates, -rate * multiplier * direction, at the step of the training state.

    Unlike optax's it keeps no counter of its own, which would fall behind where an update is skipped.
    """

    def update(updates, state, params=None, *, step=0, **_):
        rate = -jnp.asarray(schedule(step))
        return {
            name: (rate * multipliers.get(name, 1.0)).astype(value.dtype) * value for name, value in updates.items()
        }, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(network: Network, no_decay: tuple[str, ...]) -> dict[str, bool]:
    """{path: whether it decays} for the trained parameters.

    `no_decay` may contain "norm" (scale and bias of norms) and "bias" (all other biases).
    """

    def kind(path: str) -> str:
        module, _, leaf = path.rpartition(".")
        return "norm" if f"{module}.mean" in statistics else leaf

    statistics = set(network.statistics)
    return {path: kind(path) not in no_decay for path in network.parameters if path not in network.frozen}


@dataclass(frozen=True)
class Parts:
    """What an optimiser's chain is built from.

    Attributes:
        decay: adds weight decay to what it is given; empty without weight decay.
        schedule: step -> learning rate.
        rate: multiplies by it, and the sign.
        trusted: {path: whether the layer-wise optimisers scale its update by a trust ratio}.
    """

    config: OptimizerConfig
    decay: tuple[optax.GradientTransformation, ...]
    schedule: Schedule
    rate: optax.GradientTransformation
    trusted: dict[str, bool]

    @property
    def adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(*self.config.betas, eps=self.config.epsilon)

    def trace(self, *, nesterov: bool = False) -> optax.GradientTransformation:
        return optax.trace(self.config.momentum, nesterov=nesterov)

    @property
    def rms(self) -> optax.GradientTransformation:
        """Adam without its mean of the gradients."""
        decay, eps = self.config.betas[1], self.config.epsilon
        return optax.scale_by_rms(decay, eps, eps_in_sqrt=False, bias_correction=True)

    @property
    def lion(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(*self.config.betas)

    @property
    def muon(self) -> tuple[optax.GradientTransformation, ...]:
        """Muon for the convolutions' kernels, Adam for everything else."""
        return (
            optax.masked(muon_direction(self.config.momentum), lambda arrays: _are_kernels(arrays, True)),
            optax.masked(self.adam, lambda arrays: _are_kernels(arrays, False)),
        )

    def schedule_free(self, *base: optax.GradientTransformation, b1: float) -> optax.GradientTransformationExtraArgs:
        """Schedule-free learning (Defazio et al., arXiv:2405.15682) around `base`, which has no momentum of its own.

        The parameters of the training state are the points at which gradients are taken; `model_arrays` has those to
        evaluate, which are an average over the steps, weighted by the square of the largest learning rate so far.
        """
        free = optax.contrib.schedule_free(optax.chain(*base), lambda count: self.schedule(jnp.asarray(count) - 1), b1)

        def update(updates, state, params=None, *, step=0, **_):
            # optax counts calls, from 1; an update that is skipped would make it fall behind the base's rate.
            state = state._replace(step_count=jnp.asarray(step + 1, jnp.int32))
            return free.update(updates, state, params, step=step)

        return optax.GradientTransformationExtraArgs(free.init, update)

    def trust(self, coefficient: float = 1.0) -> optax.GradientTransformation:
        return optax.masked(optax.scale_by_trust_ratio(trust_coefficient=coefficient), self.trusted)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of `torch.optim.Muon`


def muon_direction(momentum: float) -> optax.GradientTransformation:
    """The directions of `torch.optim.Muon(nesterov=True, adjust_lr_fn="match_rms_adamw")` for kernels (h, w, I, O).

    A kernel is the matrix (O, I * h * w), as users of PyTorch's flatten theirs. Its momentum, a mean of the gradients
    without the bias correction that optax's own has, is orthogonalised by five steps of Newton and Schulz and scaled by
    0.2 sqrt(max(O, I * h * w)), to the size of Adam's directions (arXiv:2502.16982): one learning rate serves both.
    PyTorch takes the five steps in bfloat16; here they have the precision of the parameters.
    """
    numbers = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    orthogonalize = optax.contrib.scale_by_muon(
        NEWTON_SCHULZ,
        beta=0.0,
        eps=1e-30,
        nesterov=False,
        weight_dimension_numbers=lambda arrays: jax.tree.map(lambda _: numbers, arrays),
    )

    def mixed(old: jax.Array, new: jax.Array) -> jax.Array:
        return momentum * old + (1 - momentum) * new

    def init(params):
        return optax.TraceState(optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        trace = jax.tree.map(mixed, state.trace, updates)
        orthogonal, _ = orthogonalize.update(jax.tree.map(mixed, trace, updates), orthogonalize.init(trace))
        return jax.tree.map(
            lambda array: 0.2 * math.sqrt(max(array.shape[3], math.prod(array.shape[:3]))) * array, orthogonal
        ), optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


ADAN = (0.98, 0.92, 0.99)  # of the paper, where they are called 1 - beta


def adan_direction(epsilon: float) -> optax.GradientTransformation:
    """The directions of Adan (Xie et al., arXiv:2208.06677, algorithm 1), as the authors' code and timm's have them.

    They are those of Adam for the gradients' mean, plus `ADAN[1]` times that of their differences from step to step.
    `optax.scale_by_adan` 0.2.8 has 1 - `ADAN[1]` in its place.
    """
    means, differences, squares = ADAN

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdanState(zeros, zeros, zeros, zeros, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        count = state.t + 1
        change = jax.tree.map(lambda new, old: jnp.where(state.t > 0, new - old, 0), updates, state.g)
        ahead = optax.tree.add_scale(updates, differences, change)
        m = optax.tree.update_moment(updates, state.m, means, 1)
        v = optax.tree.update_moment(change, state.v, differences, 1)
        n = optax.tree.update_moment(ahead, state.n, squares, 2)
        wanted = optax.tree.add_scale(
            optax.tree.bias_correction(m, means, count), differences, optax.tree.bias_correction(v, differences, count)
        )
        size = optax.tree.bias_correction(n, squares, count)
        direction = jax.tree.map(lambda value, square: value / (jnp.sqrt(square) + epsilon), wanted, size)
        return direction, optax.ScaleByAdanState(m, v, n, updates, count)

    return optax.GradientTransformation(init, update)


def _are_kernels(arrays: Any, wanted: bool) -> dict[str, bool]:
    return {path: (array.ndim == 4) is wanted for path, array in arrays.items()}


# Decay before a direction is coupled (added to the gradient, as in PyTorch's SGD and Adam), decay after it decoupled
# (multiplied by the learning rate only, as in AdamW).
OPTIMIZERS: dict[str, Callable[[Parts], tuple[optax.GradientTransformation, ...]]] = {
    "sgd": lambda parts: (*parts.decay, optax.identity(), parts.rate),  # the identity is part of stored states
    "momentum": lambda parts: (*parts.decay, parts.trace(), parts.rate),
    "nesterov": lambda parts: (*parts.decay, parts.trace(nesterov=True), parts.rate),
    "adam": lambda parts: (*parts.decay, parts.adam, parts.rate),
    "adamw": lambda parts: (parts.adam, *parts.decay, parts.rate),
    "lion": lambda parts: (parts.lion, *parts.decay, parts.rate),  # Chen et al., arXiv:2302.06675
    "muon": lambda parts: (*parts.muon, *parts.decay, parts.rate),
    "adan": lambda parts: (adan_direction(parts.config.epsilon), *parts.decay, parts.rate),
    "schedule_free_sgd": lambda parts: (parts.schedule_free(*parts.decay, parts.rate, b1=parts.config.momentum),),
    "schedule_free_adamw": lambda parts: (
        parts.schedule_free(parts.rms, *parts.decay, parts.rate, b1=parts.config.betas[0]),
    ),
    # You et al., arXiv:1904.00962, without trust ratios for norms and biases.
    "lamb": lambda parts: (parts.adam, *parts.decay, parts.trust(), parts.rate),
    # You et al., arXiv:1708.03888: the trust ratio covers gradient and decay, and momentum accumulates scaled updates.
    "lars": lambda parts: (*parts.decay, parts.trust(parts.config.trust_coefficient), parts.rate, parts.trace()),
}
"""{name: the chain between clipping and the update}. A new one also goes into the choices of `OptimizerConfig`."""


def make_optimizer(
    config: OptimizerConfig, schedule: Schedule, network: Network
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of flat dicts {path: array}; its `update` also takes `step`, that of the training state.

    Raises:
        UserError: for an unknown optimiser, or a pattern of `learning_rate_multipliers` that matches no parameter.
    """
    if config.optimizer not in OPTIMIZERS:
        raise UserError(f"no optimizer {config.optimizer!r}; the optimizers are {', '.join(OPTIMIZERS)}")
    if config.optimizer.startswith("schedule_free"):
        _check_schedule_free(config)
    multipliers: dict[str, float] = {}
    for pattern, factor in config.learning_rate_multipliers:
        multipliers.update(dict.fromkeys(match_paths(pattern, network.parameters), factor))
    mask = decay_mask(network, config.no_decay)
    parts = Parts(
        config,
        decay=(optax.add_decayed_weights(config.weight_decay, mask),) if config.weight_decay else (),
        schedule=schedule,
        rate=scale_by_learning_rate(schedule, multipliers),
        trusted=decay_mask(network, ("norm", "bias")),
    )
    clip = (optax.clip_by_global_norm(config.clip_norm),) if config.clip_norm else ()
    return optax.chain(*clip, *OPTIMIZERS[config.optimizer](parts))


def _check_schedule_free(config: OptimizerConfig) -> None:
    option = "--momentum" if config.optimizer == "schedule_free_sgd" else "--betas"
    b1 = config.momentum if config.optimizer == "schedule_free_sgd" else config.betas[0]
    if not 0 < b1 < 1:
        raise UserError(f"{config.optimizer} needs {option} above 0 and below 1, for its average; got {b1}")
    if config.ema_decay is not None:
        raise UserError(f"{config.optimizer} evaluates an average of the parameters already; remove --ema-decay")
