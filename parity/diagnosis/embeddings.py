"""Embeddings looked up at other positions, scaled, or added in another layout."""

import math

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments, is_tensor
from parity.diagnosis.program import Call, Replacement


@alters("embedding")
def lookup(call: Call) -> Variants:
    weight, padding = arguments(call)["weight"], arguments(call).get("padding_idx")
    for offset in (-2, -1, 1, 2):
        yield f"the embedding is looked up {offset:+d} from PyTorch's index", _shifted(offset)
    yield (
        f"the embedding is multiplied by sqrt({weight.shape[1]}), its width",
        lambda call, _: call.again() * math.sqrt(weight.shape[1]),
    )
    if padding is not None and padding >= 0:
        yield (
            f"the embedding of padding_idx {padding} is taken as zero, PyTorch takes the table's row",
            lambda call, _: call.again() * (call.args[0] != padding).unsqueeze(-1),
        )


def _shifted(offset: int) -> Replacement:
    def replaced(call: Call, _: object) -> torch.Tensor:
        weight = arguments(call)["weight"]
        return F.embedding((call.args[0] + offset).clip(0, len(weight) - 1), weight)

    return replaced


@alters("arange")
def positions(call: Call) -> Variants:
    for offset in (-1, 1, 2):
        yield f"positions are counted {offset:+d} from PyTorch's", _counted(offset)
    yield "positions are counted backwards", lambda call, _: call.again().flip(0)


def _counted(offset: int) -> Replacement:
    return lambda call, _: call.again() + offset


@alters("getitem")
def window(call: Call) -> Variants:
    """A part of a table: the first rows, or others."""
    x, index = call.args
    parts = index if isinstance(index, tuple) else (index,)
    for axis, part in enumerate(parts):
        if not isinstance(part, slice) or part.step not in (None, 1) or not is_tensor(x) or axis >= x.ndim:
            continue
        start, stop, _ = part.indices(x.shape[axis])
        for offset in (1, 2, -1, x.shape[axis] - stop):
            if offset and start + offset >= 0 and stop + offset <= x.shape[axis]:
                yield (
                    f"axis {axis} is taken from {start + offset} on, PyTorch's from {start}",
                    _moved(axis, start + offset, stop + offset),
                )


def _moved(axis: int, start: int, stop: int) -> Replacement:
    def replaced(call: Call, _: object) -> torch.Tensor:
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        return call.args[0][(*index[:axis], slice(start, stop), *index[axis + 1 :])]

    return replaced


@alters("add")
def added_table(call: Call) -> Variants:
    """A table that is added in another layout."""
    if len(call.args) != 2 or not all(map(is_tensor, call.args)):
        return
    for place, table in enumerate(call.args):
        other = call.args[1 - place]
        if not (isinstance(table, torch.nn.Parameter) or table.numel() < other.numel()):
            continue
        for first in range(table.ndim):
            for second in range(first + 1, table.ndim):
                if table.shape[first] == table.shape[second] > 1:
                    yield (
                        f"what is added has its axes {first} and {second} swapped against PyTorch's",
                        _turned(place, first, second),
                    )
                elif 1 not in (table.shape[first], table.shape[second]):
                    yield (
                        f"what is added is read with its axes {first} and {second} swapped and not turned back",
                        _reread(place, first, second),
                    )


def _turned(place: int, first: int, second: int) -> Replacement:
    return lambda call, _: call.args[1 - place] + call.args[place].transpose(first, second)


def _reread(place: int, first: int, second: int) -> Replacement:
    return lambda call, _: (
        call.args[1 - place] + call.args[place].transpose(first, second).reshape(call.args[place].shape)
    )
