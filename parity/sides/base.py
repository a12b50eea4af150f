"""What a run of either network gives, the arrangements of PyTorch's, layouts, and losses."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flax import nnx

from parity.errors import ParityError

Arrays = dict[str, np.ndarray]
INPUTS, OUTPUT = "(inputs)", "output"
Loss = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
"""The same loss twice, (outputs, targets) -> scalar: in JAX and in PyTorch."""


@dataclass
class Run:
    """What one pass through a network gave, by PyTorch's names.

    Gradients and statistics are in PyTorch's layout; outputs, activations and the inputs' gradient in the side's own.
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
    """A way for PyTorch to compute the same thing with other rounding."""

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


def require_networks(flax_model: Any, torch_model: Any) -> None:
    """Raises ParityError unless these are a Flax network and a PyTorch one."""
    if not isinstance(flax_model, nnx.Module) or not isinstance(torch_model, torch.nn.Module):
        found = " and ".join(map(_kind, (flax_model, torch_model)))
        raise ParityError(f"expected the Flax network and then the PyTorch one, found {found}")
    if isinstance(torch_model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise ParityError(f"the PyTorch network is wrapped in {type(torch_model).__name__}: give its .module")


def _kind(found: Any) -> str:
    """Of what type it is, or which class."""
    return (
        f"the class {found.__name__}" if isinstance(found, type) else f"{type(found).__module__}.{type(found).__name__}"
    )


def torch_layout(arrays: Any) -> Any:
    """(N, *space, C) as (N, C, *space), for two or more spatial axes; anything else as it is. Also a dict of such."""
    if isinstance(arrays, dict):
        return {name: torch_layout(array) for name, array in arrays.items()}
    return np.moveaxis(np.asarray(arrays), -1, 1) if np.ndim(arrays) >= 4 else np.asarray(arrays)


def like_torch(ours: Run, theirs: Run) -> Run:
    """Flax's run with outputs, activations and the inputs' gradient ordered and laid out as their counterparts."""
    inputs = _like_torch({name: value for name, value in ours.gradients.items() if name == INPUTS}, theirs.gradients)
    return replace(
        ours,
        outputs=_like_torch(ours.outputs, theirs.outputs),
        activations=_like_torch(ours.activations, theirs.activations),
        gradients=ours.gradients | inputs,
    )


def _like_torch(ours: Arrays, theirs: Arrays) -> Arrays:
    """Activations that both sides have, in PyTorch's order and layout."""
    return {name: in_layout_of(ours[name], array) for name, array in theirs.items() if name in ours}


def in_layout_of(array: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The array with its channels first if PyTorch's has that shape; where either way fits, from four axes on."""
    if array.ndim < 3:
        return array
    moved = np.moveaxis(array, -1, 1)
    return moved if moved.shape == theirs.shape and (array.ndim >= 4 or array.shape != theirs.shape) else array
