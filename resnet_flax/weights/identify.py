"""Which network a checkpoint holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, ResNet, build_model
from resnet_flax.weights.entries import Shape, entries, first_entries, kind_of_entries, kind_of_row


@dataclass(frozen=True)
class Identity:
    """Which network a checkpoint belongs to."""

    architecture: str
    num_classes: int
    in_channels: int
    small_images: bool

    def __str__(self) -> str:
        head = f"{self.num_classes} classes" if self.num_classes else "no head"
        channels = "1 input channel" if self.in_channels == 1 else f"{self.in_channels} input channels"
        return f"{self.architecture}, {head}, {channels}" + (", small-image stem" if self.small_images else "")

    @property
    def also(self) -> tuple[str, ...]:
        """The other architectures whose checkpoints have the same names and shapes, such as resnetblur50 for resnet50.

        Only what came with a checkpoint can tell which of them it belongs to.
        """
        own = ARCHITECTURES[self.architecture]
        return tuple(row.name for row in ARCHITECTURES.values() if row is not own and row.has_shapes_of(own))

    def build(self, rngs: nnx.Rngs, **options: Any) -> ResNet:
        """A randomly initialised network of this kind."""
        sizes: dict[str, Any] = {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "small_images": self.small_images,
        }
        return build_model(self.architecture, rngs=rngs, **{**sizes, **options})

    def build_abstract(self, **options: Any) -> ResNet:
        """The same without memory or random numbers: every variable is a `jax.ShapeDtypeStruct`, to be filled."""
        return nnx.eval_shape(lambda: self.build(_OneKey(0), **options))


class _OneKey(nnx.Rngs):
    """One key for all parameters, whose values are never computed.

    While a function is traced, each draw of a new key searches everything that was traced before: a network of 400
    layers would take minutes.
    """

    def params(self) -> jax.Array:
        return self.default.key[...]


def identify(shapes: Mapping[str, Shape]) -> Identity:
    """The network whose state_dict has these entries.

    A few entries may be missing or unknown; filling the network lists them. Where several architectures have the same
    names and shapes, it is the first in the table, which is the plain one; the others are in `Identity.also`.

    Args:
        shapes: {torchvision's name: PyTorch's shape} of every entry.

    Raises:
        UserError: if it is none of `ARCHITECTURES`.
    """
    blocks = {(match[1], match[2]) for name in shapes if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
    stages = sorted({int(stage) for stage, _ in blocks})
    depths = tuple(sum(stage == number for stage, _ in blocks) for number in map(str, stages))
    rows = [row for row in ARCHITECTURES.values() if row.layers == depths]
    if not rows:
        every = sorted({row.layers for row in ARCHITECTURES.values()})
        near = sorted(every, key=lambda layers: abs(sum(layers) - sum(depths)) + 99 * (len(layers) != len(depths)))[:3]
        raise UserError(
            f"no architecture here has stages of {_listed(depths)} blocks; the nearest have "
            f"{' or '.join(map(_listed, near))}"
        )
    stem = shapes.get("conv1.0.weight", shapes.get("conv1.weight", ()))
    if len(stem) != 4 or 0 in stem:
        found = f"conv1.weight is {stem}" if stem else "there is no conv1.weight and no conv1.0.weight"
        raise UserError(
            f"every architecture here has a conv1.weight or conv1.0.weight (features, channels, height, width), "
            f"but {found}"
        )
    is_small = "conv1.weight" in shapes and stem[2] == 3
    kind = kind_of_entries(shapes)
    likely = [row for row in rows if kind_of_row(row) == kind or (is_small and kind_of_row(row)[1:] == kind[1:])]
    found = _comparable(
        {name: shape for name, shape in shapes.items() if re.match(r"layer\d+\.0\.|conv1\.|bn1\.|maxpool\.", name)},
        with_stem=not is_small,
    )
    agreements = {}
    for row in likely or rows:
        expected = _comparable(first_entries(row.name), with_stem=not is_small)
        agreeing = sum(found.get(name) == shape for name, shape in expected.items())
        agreements[row.name] = agreeing / len(expected.keys() | found.keys())
        if agreements[row.name] == 1:
            break
    nearest = max(agreements, key=lambda name: agreements[name])
    _require_near(shapes, nearest, with_stem=not is_small)
    head = shapes.get("fc.weight")
    return Identity(nearest, head[0] if head else 0, in_channels=stem[1], small_images=is_small)


def _listed(depths: tuple[int, ...]) -> str:
    return ", ".join(map(str, depths)) or "no"


def _comparable(expected: Mapping[str, Shape], *, with_stem: bool) -> dict[str, Shape]:
    """The entries that every network of an architecture has, whatever its input, head and age."""
    return {
        name: shape
        for name, shape in expected.items()
        if not name.endswith("num_batches_tracked")
        and not name.startswith("fc.")
        and name not in ("conv1.weight", "conv1.0.weight")
        and (with_stem or name.startswith("layer"))
    }


def _require_near(shapes: Mapping[str, Shape], architecture: str, *, with_stem: bool) -> None:
    """Raises UserError if an entry has another shape, or most are missing."""
    expected = _comparable(entries(architecture), with_stem=with_stem)
    missing = [name for name in expected if name not in shapes]
    misshapen = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    if misshapen:
        name = misshapen[0]
        difference = f"{name} is {shapes[name]} and not {expected[name]}"
    elif 2 * len(missing) > len(expected):
        difference = f"{len(missing)} of the {len(expected)} entries of its stages are missing, such as {missing[0]}"
    else:
        return
    raise UserError(f"no architecture here has these entries; the nearest is {architecture}, but {difference}")
