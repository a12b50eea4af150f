"""Small networks outside ResNets in both frameworks, whose functions between layers can be chosen."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import nn

import parity
from parity.reports.results import Report

torch.set_num_threads(1)


class Torch(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, layers: dict[str, Any], forward: Callable):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class Flax(nnx.Module):
    """The same in Flax."""

    def __init__(self, layers: dict[str, Any], forward: Callable):
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def __call__(self, x):
        return self.function(self, x)


@dataclass(frozen=True, eq=False)
class Planted:
    """A fault: both networks, what they are run on, and what must be found of it.

    Attributes:
        words: in the findings; None where the cause has no name and none may be given.
        options: of `parity.check`.
    """

    what: str
    words: str | None
    plant: Callable[[], tuple[nnx.Module, nn.Module, np.ndarray]]
    options: dict[str, Any] = field(default_factory=dict)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def linear(before: int, after: int) -> nnx.Linear:
    return nnx.Linear(before, after, rngs=rngs())


def conv(before: int, after: int, size: int = 3, **options: Any) -> nnx.Conv:
    return nnx.Conv(before, after, (size, size), **{"padding": size // 2, **options}, rngs=rngs())


def filled(
    ours: nnx.Module, theirs: nn.Module, shape: tuple[int, ...], tokens: int = 0
) -> tuple[nnx.Module, nn.Module, np.ndarray]:
    """Both with one set of random weights, and a batch of that shape."""
    parity.randomize(ours, theirs)
    if tokens:
        return ours, theirs, np.random.default_rng(0).integers(1, tokens - 2, shape)
    return ours, theirs, parity.random_inputs(shape)


def outcome(fault: Planted) -> Report:
    ours, theirs, inputs = fault.plant()
    return parity.check(ours, theirs, inputs, **{"checks": ("forward", "activations"), **fault.options})


def assert_caught_and_named(fault: Planted) -> None:
    report = outcome(fault)
    assert not report.passed
    said = " ".join(map(str, report.findings))
    assert "raised" not in said
    assert not any("could not be taken apart" in note for note in report.notes), report.notes
    if fault.words is None:
        assert "differ" in said or "agree" in said, said
        assert "PyTorch applies" not in said, said
        assert "PyTorch's is" not in said, said
    else:
        assert fault.words in said, said
