"""Layers that `nnx.vmap` or `nnx.scan` has stacked: one variable of all, which PyTorch keeps layer by layer."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Layer:
    """The part of a stacked variable that is one layer's, which can be used as a variable.

    Attributes:
        variable: of all layers, along its first axis.
        index: of this one.
    """

    def __init__(self, variable: nnx.Variable, index: int):
        self.variable, self.index = variable, index

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variable.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        return self.variable.dtype

    def get_value(self) -> Any:
        value = self.variable.get_value()
        return jax.ShapeDtypeStruct(self.shape, self.dtype) if _is_abstract(value) else value[self.index]

    def set_value(self, value: Any) -> None:
        stack = self.variable.get_value()
        stack = jnp.zeros(stack.shape, stack.dtype) if _is_abstract(stack) else jnp.asarray(stack)
        self.variable.set_value(stack.at[self.index].set(value))


def _is_abstract(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct)


class Found(NamedTuple):
    """A variable as a stack is recognised by it.

    Attributes:
        path: of the module that holds it.
        shape: its own.
        ndim: how many axes it has in such a layer; None for any number.
    """

    path: str
    shape: tuple[int, ...]
    ndim: int | None


def stacks(found: Sequence[Found]) -> dict[str, int]:
    """{path of a stacked module: number of its layers}.

    A module is stacked if every variable in it whose number of axes is known has one more, and all have one length of
    the first axis. The outermost such module counts; the whole network never does.
    """
    if not any(_has_one_more(one) for one in found):
        return {}
    below: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        for path in _with_parents(one.path):
            below[path].append(one)
    lengths: dict[str, int] = {}
    for path in sorted(below, key=len):
        known = [one for one in below[path] if one.ndim is not None]
        first = {one.shape[:1] for one in below[path]}
        is_inner = any(path.startswith(f"{outer}.") for outer in lengths)
        if known and all(map(_has_one_more, known)) and len(first) == 1 and not is_inner:
            lengths[path] = below[path][0].shape[0]
    return lengths


def _has_one_more(found: Found) -> bool:
    return found.ndim is not None and len(found.shape) == found.ndim + 1


def _with_parents(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
