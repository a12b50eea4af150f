"""What a side of a comparison is: one network in one precision, run on batches, under canonical names.

Canonical names are PyTorch's dotted paths, which a network in JAX has by the rules of the conversion. Parameters,
statistics, moments and the parameters' gradients are in PyTorch's layout; outputs, activations and the inputs' gradient
in the side's own, which `aligned` brings together.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from parity.sides.optimizers import Moments, Optimizer

Arrays = dict[str, np.ndarray]
INPUTS, OUTPUT = "(inputs)", "output"
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
        gradients: the loss's, for every parameter, and for the inputs under `INPUTS` in the side's own layout.
        loss: NaN where there was none.
        floors: {group: {name: relative error}} for a run that was recorded with its noise.
    """

    outputs: Arrays
    activations: Arrays
    statistics: Arrays
    gradients: Arrays = field(default_factory=dict)
    loss: float = float("nan")
    floors: dict[str, dict[str, float]] = field(default_factory=dict)

    def groups(self) -> dict[str, Arrays]:
        return {name: getattr(self, name) for name in ("outputs", "activations", "statistics", "gradients")}


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
    def takes_tokens(self) -> bool: ...

    @property
    def has_train_mode(self) -> bool: ...

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
        """An array, or a dict of them, as this side's network takes it; floats in the run's dtype."""
        ...

    def output_shapes(self, inputs: np.ndarray) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs in eval mode."""
        ...

    def run(self, inputs: np.ndarray, targets: Any = None, loss: Loss | None = None, *, train: bool) -> Run:
        """A pass over inputs in the side's own layout, and one back where there is a loss; the state stays as it is."""
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

    def step_floors(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """{group: {name: floor}} known for an optimiser step: none but of a recording."""
        return {}

    def run(
        self,
        inputs: np.ndarray,
        targets: Any = None,
        loss: Loss | None = None,
        *,
        train: bool,
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


def channels_second(arrays: Any) -> Any:
    """(N, *space, C) as (N, C, *space), for two or more spatial axes; anything else as it is. Also a dict of such."""
    if isinstance(arrays, Mapping):
        return {name: channels_second(array) for name, array in arrays.items()}
    return np.moveaxis(np.asarray(arrays), -1, 1) if np.ndim(arrays) >= 4 else np.asarray(arrays)


def relaid(arrays: Any, side: Side, other: Side) -> Any:
    """Inputs or targets as one side takes them, as another does: channels moved in arrays of four or more axes."""
    if isinstance(arrays, Mapping):
        return {name: relaid(array, side, other) for name, array in arrays.items()}
    return (
        np.moveaxis(np.asarray(arrays), side.channels, other.channels) if np.ndim(arrays) >= 4 else np.asarray(arrays)
    )


def jittered(inputs: np.ndarray, seed: int | None, dtype: Any) -> np.ndarray:
    """The inputs, each moved by one unit in the last place of `dtype`, up or down."""
    if seed is None or not np.issubdtype(inputs.dtype, np.floating):
        return inputs
    inputs = inputs.astype(dtype)
    up = np.random.default_rng(seed).random(inputs.shape) < 0.5
    return np.nextafter(inputs, np.where(up, np.inf, -np.inf).astype(inputs.dtype))


def aligned(run: Run, reference: Run, side: Side, other: Side) -> Run:
    """A run of one side with outputs, activations and the inputs' gradient ordered and laid out as the other's."""
    inputs = {name: value for name, value in run.gradients.items() if name == INPUTS}
    return replace(
        run,
        outputs=_aligned(run.outputs, reference.outputs, side, other),
        activations=_aligned(run.activations, reference.activations, side, other),
        gradients=run.gradients | _aligned(inputs, reference.gradients, side, other),
    )


def _aligned(arrays: Arrays, reference: Arrays, side: Side, other: Side) -> Arrays:
    """Those that the reference has too, in its order and layout."""
    return {name: in_layout_of(arrays[name], array, side, other) for name, array in reference.items() if name in arrays}


def in_layout_of(array: np.ndarray, reference: np.ndarray, side: Side, other: Side) -> np.ndarray:
    """An array of one side with its channels where the other has them, if that is the shape of `reference`.

    Where either fits, channels are moved from four axes on.
    """
    if array.ndim < 3 or side.channels == other.channels:
        return array
    moved = np.moveaxis(array, side.channels, other.channels)
    return moved if moved.shape == reference.shape and (array.ndim >= 4 or array.shape != reference.shape) else array
