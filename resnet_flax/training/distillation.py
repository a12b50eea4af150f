"""Distillation: the loss by which a network also learns the outputs of a teacher (Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.stages import Lowered, Wrapped

from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.sharding import abstract
from resnet_flax.training.state import Arrays, Network
from resnet_flax.weights.hub import hub_name
from resnet_flax.weights.load import load_pretrained

Lesson = Callable[[jax.Array, jax.Array], jax.Array]
"""(loss of the labels, logits (N, classes)) -> the loss."""


def soft_loss(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T^2 * KL(softmax(teacher / T) || softmax(logits / T)), the mean over the batch.

    That is `torch.nn.KLDivLoss(reduction="batchmean")` times T^2, which keeps the size of the gradients whatever the
    temperature T (section 2 of the paper).

    Args:
        logits, teacher: (N, classes).
    """
    ours, theirs = jax.nn.log_softmax(logits / temperature), jax.nn.log_softmax(teacher / temperature)
    return temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(-1).mean()


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode whose outputs are learnt.

    Attributes:
        network, arrays: its structure, its parameters and statistics.
        temperature: of `soft_loss`.
        weight: of `soft_loss`; the loss of the labels has the rest, 1 - weight.
        class_names: of its outputs, where they are known.
        notes: what was assumed about it, one sentence each.
    """

    network: Network
    arrays: Arrays
    temperature: float
    weight: float
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def lesson(self, arrays: Arrays, images: jax.Array) -> Lesson:
        """What the labels' loss becomes for these images, which the student sees too; no gradient passes through it."""
        theirs = self.network.model(arrays)(images)
        theirs = jax.lax.stop_gradient(theirs.astype(jnp.promote_types(theirs.dtype, jnp.float32)))
        return lambda loss, logits: (1 - self.weight) * loss + self.weight * soft_loss(logits, theirs, self.temperature)

    def warnings(self, class_names: Sequence[str]) -> Iterator[str]:
        """What was assumed, and that its classes have other names than those of the data."""
        yield from (f"teacher: {note}" for note in self.notes)
        for number, (theirs, ours) in enumerate(zip(self.class_names or (), class_names, strict=False)):
            if theirs != ours:
                yield (
                    f"class {number} is {theirs!r} to the teacher and {ours!r} in the data; unless these are two names "
                    "of the same class, it teaches the wrong ones"
                )
                return


class TaughtStep:
    """A training step (state, batch) -> (state, metrics) with the teacher's arrays, which lie beside the state.

    Args:
        step: (state, batch, arrays) -> (state, metrics), jitted.
        arrays: the teacher's.
        sharding: where they go.
    """

    def __init__(self, step: Wrapped, arrays: Arrays, sharding: Sharding):
        self.step, self.arrays, self.sharding = step, arrays, sharding

    @cached_property
    def _placed(self) -> Arrays:
        return jax.jit(lambda arrays: arrays, out_shardings=self.sharding)(self.arrays)

    def __call__(self, state: Any, batch: Any) -> Any:
        return self.step(state, batch, self._placed)

    def lower(self, state: Any, batch: Any) -> Lowered:
        """As a jitted function's, for shapes alone: the arrays need not be on the devices."""
        return self.step.lower(state, batch, abstract(self.arrays, self.sharding))


def load_teacher(config: TrainConfig, num_classes: int, channels: int) -> Teacher | None:
    """The teacher of a run, or None; it is checked against the data's classes and channels and the preprocessing.

    Raises:
        UserError: if it does not fit, or cannot be loaded.
    """
    loss, data = config.loss, config.data
    if loss.teacher is None:
        return None
    is_file = Path(loss.teacher).expanduser().exists()
    if loss.teacher_model is None and not is_file and hub_name(loss.teacher) is None:
        raise UserError(f"there is no file {loss.teacher}; a teacher by torchvision's name needs --teacher-model, too")
    options = {"dtype": jnp.bfloat16} if config.model.dtype == "bfloat16" else {}
    loaded = load_pretrained(loss.teacher_model, loss.teacher, **options)
    for what, theirs, ours in (
        ("classes", loaded.model.num_classes, num_classes),
        ("input channels", loaded.model.in_channels, channels),
    ):
        if theirs != ours:
            raise UserError(
                f"the teacher {loss.teacher} has {theirs} {what} and {data.data} has {ours}; choose another"
            )
    if loaded.says_preprocessing:
        for name, theirs, ours in (
            ("mean", loaded.preprocessing.mean, data.mean),
            ("std", loaded.preprocessing.std, data.std),
        ):
            if _each(theirs, channels) != _each(ours, channels):
                raise UserError(
                    f"the teacher {loss.teacher} takes images of {name} {' '.join(map(str, theirs))}, and this run's "
                    f"have {' '.join(map(str, ours))}; both see the same batch: pass --{name} "
                    f"{' '.join(map(str, theirs))}, or choose another teacher"
                )
    network = Network(loaded.model)
    notes = loaded.notes
    if not loaded.says_preprocessing:
        notes = (f"no preprocessing came with {loss.teacher}; it gets this run's images",)
    return Teacher(
        network,
        network.arrays(loaded.model),
        loss.teacher_temperature,
        loss.teacher_weight,
        loaded.class_names,
        notes,
    )


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
