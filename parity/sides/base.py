"""What a side of a comparison is: one network in one precision, run on batches, under canonical names.

Canonical names are PyTorch's dotted paths, which a network in JAX has by the rules of the conversion. Parameters,
statistics, moments and the parameters' gradients are in PyTorch's layout; outputs, activations, their gradients and the
inputs' in the side's own, which `aligned` brings together.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from parity.sides.arguments import batch_size, map_arrays
from parity.sides.optimizers import Moments, Optimizer

Arrays = dict[str, np.ndarray]
INPUTS, OUTPUT, LOSS = "(inputs)", "output", "(loss)"
GROUPS = ("outputs", "activations", "statistics", "gradients", "activation_gradients")
Train = Callable[[Any, list[tuple[Any, Any]], Optimizer], list[float]]
"""A training loop: (model in train mode, batches, optimizer) -> the loss before each update; it trains the model."""


class Loss(NamedTuple):
    """The same loss twice, (outputs, targets) -> scalar: in JAX and in PyTorch."""

    jax: Callable[[Any, Any], Any]
    torch: Callable[[Any, Any], Any]


@dataclass
class Run:
    """What one pass through a network gave, by canonical names.

    Attributes:
        outputs, activations: in the side's own layout.
        statistics: what the pass left in the network's buffers.
        gradients: the loss's, for every parameter, and for the inputs under `INPUTS` (`INPUTS.name` where there are
            several) in the side's own layout.
        activation_gradients: the loss's, for the output of every submodule, in the side's own layout; empty unless
            they were asked for.
        loss: NaN where there was none.
        floors: {group: {name: relative error}} for a run that was recorded with its noise.
    """

    outputs: Arrays
    activations: Arrays
    statistics: Arrays
    gradients: Arrays = field(default_factory=dict)
    activation_gradients: Arrays = field(default_factory=dict)
    loss: float = float("nan")
    floors: dict[str, dict[str, float]] = field(default_factory=dict)

    def groups(self) -> dict[str, Arrays]:
        """Everything that has a noise floor, by kind; the loss where there was one."""
        groups = {name: getattr(self, name) for name in GROUPS}
        has_loss = bool(self.gradients) or not math.isnan(self.loss)
        return groups | ({"loss": {LOSS: np.asarray(self.loss)}} if has_loss else {})


@dataclass(frozen=True)
class Arrangement:
    """A way for the reference to compute the same thing with other rounding."""

    name: str
    channels_last: bool = False
    permutation_seed: int | None = None
    noise_seed: int | None = None


PLAIN = Arrangement("plain")
ARRANGEMENTS = (
    PLAIN,
    Arrangement("channels last", channels_last=True),
    Arrangement("permuted batch", permutation_seed=0),
    Arrangement("input moved by one ulp", noise_seed=0),
    Arrangement("all three", channels_last=True, permutation_seed=1, noise_seed=1),
)


class Trainer(Protocol):
    """A side's network under an optimiser."""

    def step(self, step: int, inputs: np.ndarray, targets: Any, loss: Loss) -> Run:
        """Takes one optimiser step, counted from 0, and returns the pass it was computed from."""
        ...

    def moments(self) -> Moments:
        """What the optimiser keeps, in PyTorch's layout; the next step may change it in place."""
        ...

    def take_moments(self, kept: Moments, step: int) -> None:
        """Continues from these moments, after `step` steps."""
        ...


class Side(Protocol):
    """A network that can be compared: a private copy in one precision.

    Attributes:
        framework: what messages call it: "Flax", "Linen", "JAX" or "PyTorch", and which it is of two that are alike.
        channels: the axis of them in arrays of four or more axes, 1 or -1.
        precision: "float64", "float32" or "bfloat16".
        device: what it computes on, as its framework names it.
        parameters: names of the parameters, in order of definition.
        trained: those of them that have a gradient, the frozen ones apart.
        constants: names of what the state holds although no pass changes it.
        takes_tokens: whether integer inputs are meant to be looked up in an embedding.
        has_train_mode: whether train mode computes something else than eval mode.
    """

    framework: str
    channels: int
    precision: str
    device: Any

    @property
    def parameters(self) -> Collection[str]: ...

    @property
    def trained(self) -> Collection[str]: ...

    @property
    def constants(self) -> Collection[str]: ...

    @property
    def takes_tokens(self) -> bool: ...

    @property
    def has_train_mode(self) -> bool: ...

    def at(self, precision: str) -> "Side":
        """The same network, with the values that it has now, in another precision."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter and statistic, once each."""
        ...

    def state(self) -> Arrays:
        """Every parameter and statistic, copied."""
        ...

    def load(self, state: Arrays) -> None:
        """Takes some or all parameters and statistics, by copies."""
        ...

    def array(self, array: Any) -> Any:
        """An array, or a tuple, list or dict of them, as this side's network takes it; floats in the run's dtype."""
        ...

    def mode_arguments(self, inputs: Any) -> dict[str, bool]:
        """{name: value in train mode} of the switches by which the network's call takes its mode."""
        ...

    def computes_alike_in_both_modes(self, inputs: Any) -> bool:
        """Whether train mode gives the very outputs and activations of eval mode."""
        ...

    def output_shapes(self, inputs: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs in eval mode."""
        ...

    def run(
        self,
        inputs: Any,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        activation_gradients: bool = False,
    ) -> Run:
        """A pass over inputs in the side's own layout, and one back where there is a loss; the state stays as it is.

        Args:
            inputs: one array, a tuple of positional arguments or a dict of named ones; see `arguments_of`.
            activation_gradients: whether the loss's gradient is kept for every submodule's output.
        """
        ...

    def trainer(self, optimizer: Optimizer) -> Trainer:
        """The network under a new optimiser."""
        ...

    def train_with(self, train: Train, batches: Sequence[tuple[Any, Any]], optimizer: Optimizer) -> list[float]:
        """The losses of the caller's own training loop on this network, which is trained afterwards."""
        ...


class Reference(Side, Protocol):
    """A side that can also compute the same thing in other arrangements, whose spread is the noise floor.

    Attributes:
        arrangements: those that mean something to it, without the plain one.
    """

    @property
    def arrangements(self) -> Sequence[Arrangement]: ...

    def at(self, precision: str) -> "Reference": ...

    def run(
        self,
        inputs: Any,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
        activation_gradients: bool = False,
        arrangement: Arrangement = PLAIN,
        record: bool = True,
    ) -> Run:
        """As `Side.run`, in an arrangement; without `record` no activations are kept."""
        ...

    def trainer(self, optimizer: Optimizer) -> "ReferenceTrainer": ...


class ReferenceTrainer(Trainer, Protocol):
    """A trainer whose passes can be arranged."""

    def step(
        self, step: int, inputs: np.ndarray, targets: Any, loss: Loss, arrangement: Arrangement = PLAIN
    ) -> Run: ...


class AnsweredByRunning:
    """What a side finds out by passes, where it cannot know without."""

    run: Callable[..., Run]

    def output_shapes(self, inputs: Any) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.run(inputs, train=False, record=False).outputs.items()}

    def computes_alike_in_both_modes(self, inputs: Any) -> bool:
        runs = [self.run(inputs, train=train) for train in (False, True)]
        values, others = ({**run.activations, **run.outputs} for run in runs)
        return values.keys() == others.keys() and all(
            np.array_equal(value, others[name], equal_nan=value.dtype.kind in "fc") for name, value in values.items()
        )


def relaid(arrays: Any, side: Side, other: Side) -> Any:
    """Inputs or targets as one side takes them, as another does: channels moved in arrays of four or more axes.

    Masks are left as they are.
    """

    def moved(array: Any) -> Any:
        array = np.asarray(array)
        is_moved = array.ndim >= 4 and array.dtype != bool
        return np.moveaxis(array, side.channels, other.channels) if is_moved else array

    return map_arrays(moved, arrays)


def arranged(inputs: Any, arrangement: Arrangement, dtype: Any) -> tuple[Any, np.ndarray | None]:
    """The inputs in this arrangement, and the order of the batch that undoes its own; None if it has none.

    Floats are moved by one unit in the last place of `dtype`, up or down; an array without the batch's axis is not
    permuted.
    """
    size = batch_size(inputs)
    order = None
    if arrangement.permutation_seed is not None:
        order = np.random.default_rng(arrangement.permutation_seed).permutation(size)

    def one(array: Any) -> np.ndarray:
        array = _jittered(np.asarray(array), arrangement.noise_seed, dtype)
        return array[order] if order is not None and array.ndim and len(array) == size else array

    return map_arrays(one, inputs), None if order is None else np.argsort(order)


def _jittered(array: np.ndarray, seed: int | None, dtype: Any) -> np.ndarray:
    if seed is None or not np.issubdtype(array.dtype, np.floating):
        return array
    array = array.astype(dtype)
    up = np.random.default_rng(seed).random(array.shape) < 0.5
    return np.nextafter(array, np.where(up, np.inf, -np.inf).astype(array.dtype))


def in_order(array: Any, back: np.ndarray | None) -> Any:
    """An array or tensor whose first axis, or the first part of it, is a permuted batch, put back; others as they are.

    Args:
        back: see `arranged`; None for a batch that was not permuted.
    """
    if back is None or not array.ndim or not len(array) or len(array) % len(back):
        return array
    return array.reshape(len(back), -1, *array.shape[1:])[back].reshape(array.shape)


def aligned(run: Run, reference: Run, side: Side, other: Side) -> Run:
    """A run of one side, in which all that is in its own layout is ordered and laid out as the other's."""
    inputs = {name: value for name, value in run.gradients.items() if name.startswith(INPUTS)}
    return replace(
        run,
        outputs=_aligned(run.outputs, reference.outputs, side, other),
        activations=_aligned(run.activations, reference.activations, side, other),
        activation_gradients=_aligned(run.activation_gradients, reference.activation_gradients, side, other),
        gradients=run.gradients | _aligned(inputs, reference.gradients, side, other),
    )


def _aligned(arrays: Arrays, reference: Arrays, side: Side, other: Side) -> Arrays:
    """Those that the reference has too, in its order and layout, then the others as they are."""
    common = {name: in_layout_of(arrays[name], array, side, other) for name, array in reference.items()
              if name in arrays}  # fmt: skip
    return common | {name: array for name, array in arrays.items() if name not in common}


def in_layout_of(array: np.ndarray, reference: np.ndarray, side: Side, other: Side) -> np.ndarray:
    """An array of one side with its channels where the other has them, if that is the shape of `reference`.

    Where either fits, channels are moved from four axes on.
    """
    if array.ndim < 3 or side.channels == other.channels:
        return array
    moved = np.moveaxis(array, side.channels, other.channels)
    is_moved = moved.shape == reference.shape and (array.ndim >= 4 or array.shape != reference.shape)
    return np.ascontiguousarray(moved) if is_moved else array  # it is read several times
