"""What a side of a comparison is: one network in one precision, run on batches, under canonical names.

Canonical names are PyTorch's dotted paths. Parameters, statistics, moments and the parameters' gradients are in
PyTorch's layout; outputs, activations and the inputs' gradient in the side's own, which `aligned` brings together.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from parity.sides.optimizers import Moments, Optimizer

Arrays = dict[str, np.ndarray]
INPUTS, OUTPUT, LOSS = "(inputs)", "output", "(loss)"
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
    """

    outputs: Arrays
    activations: Arrays
    statistics: Arrays
    gradients: Arrays = field(default_factory=dict)
    activation_gradients: Arrays = field(default_factory=dict)
    loss: float = float("nan")

    def groups(self) -> dict[str, Arrays]:
        """Everything that has a noise floor, by kind; the loss where there was one."""
        groups = {name: value for name, value in vars(self).items() if isinstance(value, dict)}
        return groups | ({"loss": {LOSS: np.asarray(self.loss)}} if self.gradients else {})


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
    """A side that can also compute the same thing in other arrangements, whose spread is the noise floor."""

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


def channels_second(arrays: Any) -> Any:
    """(N, *space, C) as (N, C, *space), for two or more spatial axes; anything else, and a mask, as it is.

    Also a tuple, list or dict of such.
    """

    def moved(array: Any) -> Any:
        array = np.asarray(array)
        return np.moveaxis(array, -1, 1) if array.ndim >= 4 and array.dtype != bool else array

    return map_arrays(moved, arrays)


def named_arrays(tree: Any, name: str = "") -> Arrays:
    """The arrays in nested tuples and dicts by dotted name, a lone one under ""; Python's own values are no arrays."""
    if isinstance(tree, Mapping | tuple):
        children = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {
            path: array
            for key, child in children
            for path, array in named_arrays(child, f"{name}.{key}" if name else str(key)).items()
        }
    return {} if tree is None or isinstance(tree, bool | int | float | str) else {name: tree}


def with_arrays(tree: Any, arrays: Mapping[str, Any], name: str = "") -> Any:
    """`tree` with these in the place of its arrays."""
    if isinstance(tree, Mapping | tuple):
        children = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        built = {key: with_arrays(child, arrays, f"{name}.{key}" if name else str(key)) for key, child in children}
        if isinstance(tree, Mapping):
            return built
        return type(tree)(*built.values()) if hasattr(tree, "_fields") else tuple(built.values())
    return arrays.get(name, tree)


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `function` of every array."""
    return with_arrays(tree, {name: function(array) for name, array in named_arrays(tree).items()})


def arguments_of(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The positional and the named arguments of a call: a tuple's, a dict's, or the one that anything else is."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""What a network may take the mode by at call time, and its value in train mode."""


def mode_arguments(call: Callable, inputs: Any) -> dict[str, bool]:
    """{name: value in train mode} of the switches that a network's call takes and `inputs` does not give."""
    taken = list(inspect.signature(call).parameters.values())
    positional, named = arguments_of(inputs)
    free = [parameter.name for parameter in taken[len(positional) :] if parameter.name not in named]
    return {name: value for name, value in MODE_ARGUMENTS.items() if name in free}


def aligned(run: Run, reference: Run) -> Run:
    """A run with outputs, activations and the inputs' gradient ordered and laid out as their counterparts."""
    inputs = _aligned(
        {name: value for name, value in run.gradients.items() if name.startswith(INPUTS)}, reference.gradients
    )
    return replace(
        run,
        outputs=_aligned(run.outputs, reference.outputs),
        activations=_aligned(run.activations, reference.activations),
        activation_gradients=_aligned(run.activation_gradients, reference.activation_gradients),
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
