"""Which network a checkpoint holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, ResNet, build_model
from resnet_flax.weights.entries import Shape, entries


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
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0), **options))


def identify(shapes: Mapping[str, Shape]) -> Identity:
    """The network whose state_dict has these entries.

    A few entries may be missing or unknown; filling the network lists them.

    Args:
        shapes: {torchvision's name: PyTorch's shape} of every entry.

    Raises:
        UserError: if it is none of `ARCHITECTURES`.
    """
    depths = tuple(
        len({match[1] for name in shapes if (match := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in (1, 2, 3, 4)
    )
    rows = [row.name for row in ARCHITECTURES.values() if row.layers == depths]
    if not rows:
        raise UserError(
            f"no architecture here has stages of {', '.join(map(str, depths))} blocks; "
            f"the architectures are {', '.join(ARCHITECTURES)}"
        )
    nearest = max(rows, key=lambda name: _agreement(shapes, name))
    _require_near(shapes, nearest)
    stem, head = shapes.get("conv1.weight", ()), shapes.get("fc.weight")
    if len(stem) != 4:
        found = f"conv1.weight is {stem}" if stem else "there is no conv1.weight"
        raise UserError(f"every architecture here has a conv1.weight (64, channels, height, width), but {found}")
    return Identity(nearest, head[0] if head else 0, in_channels=stem[1], small_images=stem[2] == 3)


def _stages(architecture: str) -> dict[str, Shape]:
    """The entries that every network of an architecture has, whatever its stem, head and age."""
    return {
        name: shape
        for name, shape in entries(architecture).items()
        if name.startswith("layer") and not name.endswith("num_batches_tracked")
    }


def _agreement(shapes: Mapping[str, Shape], architecture: str) -> int:
    return sum(shapes.get(name) == shape for name, shape in _stages(architecture).items())


def _require_near(shapes: Mapping[str, Shape], architecture: str) -> None:
    """Raises UserError if an entry has another shape, or most are missing."""
    expected = _stages(architecture)
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
