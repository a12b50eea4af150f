"""What a row of the tables of layouts is, and how its checkpoint is made from a network under torchvision's names."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tests.resnet_flax.weights.others import Arrays


def new(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0.5), shape)


def prefixed(prefix: str, state: Arrays) -> Arrays:
    return {prefix + name: array for name, array in state.items()}


def renamed(scheme: Callable[[str], str]) -> Callable[[Arrays], Arrays]:
    return lambda state: {scheme(name): array for name, array in state.items()}


def body(state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not name.startswith("fc.")}


def uncounted(state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def head(state: Arrays, name: str) -> Arrays:
    return {re.sub(r"^fc\.", f"{name}.", key): array for key, array in state.items()}


def mlp(name: str, *widths: int) -> Arrays:
    layers = {}
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        layers |= {f"{name}.{2 * number}.weight": new(outputs, inputs), f"{name}.{2 * number}.bias": new(outputs)}
    return layers


def copies(state: Arrays) -> Arrays:
    return {
        name: array + 0 if array.size < 10_000 else np.broadcast_to(array.flat[0] + 0, array.shape)
        for name, array in state.items()
    }


def folded(state: Arrays) -> Arrays:
    convolutions = {name: array for name, array in state.items() if array.ndim == 4}
    biases = {name.replace(".weight", ".bias"): new(len(array)) for name, array in convolutions.items()}
    return convolutions | biases | {name: array for name, array in state.items() if name.startswith("fc.")}


def cut(pattern: str, state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not re.search(pattern, name)}


def inserted(part: str) -> Callable[[Arrays], Arrays]:
    return lambda state: {re.sub(r"^(layer\d\.\d+)\.", rf"\1.{part}.", name): array for name, array in state.items()}


@dataclass(frozen=True)
class Case:
    """One layout.

    Attributes:
        kind: its row in docs/checkpoints.md.
        make: what the file holds, from a network under torchvision's names.
        outcome: "exact", "note" or "warning" (both exact as far as the entries go), or "refused".
        text: a regular expression that the message or some note matches.
        file: what it is called; by default as the architecture, which then is certain.
        classes: of the head that is found.
        options: the arithmetic that is decided.
    """

    kind: str
    make: Callable[[Arrays], Any]
    outcome: str = "exact"
    text: str = ""
    prefix: str | None = None
    file: str = ""
    architecture: str = "resnet18"
    classes: int = 1000
    config: Any = None
    options: tuple[tuple[str, Any], ...] = ()
