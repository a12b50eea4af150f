"""The mean of several checkpoints of one network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnet_flax.errors import UserError
from resnet_flax.weights.files import Weights, read_weights
from resnet_flax.weights.metadata import Metadata


def average_weights(paths: Sequence[Path], prefix: str | None = None) -> Weights:
    """The first checkpoint with the mean over all of them for each value, summed in float64.

    Running statistics are averaged too, as timm's avg_checkpoints does; counters are the last checkpoint's.

    Raises:
        UserError: for fewer than two checkpoints, or such that are not of the same network and classes.
        ParityError: if one cannot be read.
    """
    if len(paths) < 2:
        raise UserError(f"an average needs at least two checkpoints; got {len(paths)}")
    first = read_weights(paths[0], prefix)
    sums = {name: array.astype(np.float64) for name, array in first.state_dict.items() if array.dtype.kind != "i"}
    counters = {name: array for name, array in first.state_dict.items() if name not in sums}
    for path in paths[1:]:
        other = read_weights(path, prefix)
        _require_same(first, other)
        for name in sums:
            sums[name] += other.state_dict[name]
        counters |= {name: other.state_dict[name] for name in counters}
    means = {name: (array / len(paths)).astype(first.state_dict[name].dtype) for name, array in sums.items()}
    return replace(first, state_dict={name: means.get(name, counters.get(name)) for name in first.state_dict})


def _require_same(first: Weights, other: Weights) -> None:
    pairs = [
        ("a", str(first.identity), str(other.identity)),
        ("one with", first.options, other.options),
        ("one with the classes", Metadata(first.metadata).class_names, Metadata(other.metadata).class_names),
    ]
    for words, one, another in pairs:
        if one != another:
            raise UserError(
                f"{first.source} is {words} {one or 'none'}, and {other.source} {words} {another or 'none'}"
            )
    shapes, others = ({name: array.shape for name, array in one.state_dict.items()} for one in (first, other))
    if shapes != others:
        name = next(name for name in {**shapes, **others} if shapes.get(name) != others.get(name))
        raise UserError(
            f"{name} is {shapes.get(name, 'missing')} in {first.source} and {others.get(name, 'missing')} in "
            f"{other.source}"
        )
