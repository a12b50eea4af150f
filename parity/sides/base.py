"""What a side of a comparison is: one network in one precision, run on batches, under canonical names.

Canonical names are PyTorch's dotted paths. Parameters, statistics, moments and the parameters' gradients are in
PyTorch's layout; outputs, activations and the inputs' gradient in the side's own, which `aligned` brings together.
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
    """

    outputs: Arrays
    activations: Arrays
    statistics: Arrays
    gradients: Arrays = field(default_factory=dict)
    loss: float = float("nan")

    def groups(self) -> dict[str, Arrays]:
        return {name: value for name, value in vars(self).items() if isinstance(value, dict)}


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
        framework: what messages call it, "Flax" or "PyTorch".
        precision: "float64", "float32" or "bfloat16".
        device: what it computes on, as its framework names it.
        parameters: names of the parameters, in order of definition.
        trained: those of them that have a gradient, the frozen ones apart.
        takes_tokens: whether integer inputs are meant to be looked up in an embedding.
        has_train_mode: whether train mode computes something else than eval mode.
    """

    framework: str
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
    """A side that can also compute the same thing in other arrangements, whose spread is the noise floor."""

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


def aligned(run: Run, reference: Run) -> Run:
    """A run with outputs, activations and the inputs' gradient ordered and laid out as their counterparts."""
    inputs = _aligned({name: value for name, value in run.gradients.items() if name == INPUTS}, reference.gradients)
    return replace(
        run,
        outputs=_aligned(run.outputs, reference.outputs),
        activations=_aligned(run.activations, reference.activations),
        gradients=run.gradients | inputs,
    )


def _aligned(arrays: Arrays, reference: Arrays) -> Arrays:
    """Those that the reference has too, in its order and layout."""
    return {name: in_layout_of(arrays[name], array) for name, array in reference.items() if name in arrays}


def in_layout_of(array: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The array with its last axis second if the reference has that shape; where either fits, from four axes on."""
    if array.ndim < 3:
        return array
    moved = np.moveaxis(array, -1, 1)
    return moved if moved.shape == reference.shape and (array.ndim >= 4 or array.shape != reference.shape) else array
