"""Which architecture a checkpoint holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models.blocks import BasicBlock, Bottleneck
from resnet_flax.models.registry import ARCHITECTURES, Architecture, build_model
from resnet_flax.models.residual import Residual, Residual3x3
from resnet_flax.models.resnet import ResNet

Shape = tuple[int, ...]


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

    def build(self, rngs: nnx.Rngs, **options) -> ResNet:
        """A randomly initialised network of this kind."""
        sizes = {"num_classes": self.num_classes, "in_channels": self.in_channels, "small_images": self.small_images}
        return build_model(self.architecture, rngs=rngs, **{**sizes, **options})

    def build_abstract(self, **options) -> ResNet:
        """The same without memory or random numbers: every variable is a `jax.ShapeDtypeStruct`, to be filled."""
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0), **options))


def identify(shapes: Mapping[str, Shape], *, scheme: str = "torchvision") -> Identity:
    """The network whose entries have these torchvision names and (PyTorch) shapes.

    Args:
        shapes: of every entry.
        scheme: the naming it came in, which tells the two Residual networks of equal shapes apart.

    Raises:
        UserError: if it is none of `ARCHITECTURES`.
    """
    found = _traits(shapes, scheme)
    for row in ARCHITECTURES.values():
        if _traits_of(row) == found:
            head = shapes.get("fc.weight")
            _, in_channels, height, _ = shapes["conv1.weight"]
            return Identity(row.name, head[0] if head else 0, in_channels, small_images=height == 3)
    blocks, layers, groups, width, _ = found
    raise UserError(
        f"no architecture here has {blocks} blocks {layers} with {groups} groups of width {width}: "
        f"the ones there are: {', '.join(ARCHITECTURES)}"
    )


def _traits(shapes: Mapping[str, Shape], scheme: str) -> tuple:
    if missing := [
        name for name in ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight") if name not in shapes
    ]:
        raise UserError(f"the checkpoint lacks {', '.join(missing)}, which every ResNet has: it is cut short")
    layers = tuple(
        len({match[1] for name in shapes if (match := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in (1, 2, 3, 4)
    )
    if "layer1.0.conv1.bias" in shapes:
        shortcut = shapes.get("layer2.0.conv3.weight", (0, 0, 1, 1))
        block = Residual3x3 if shortcut[2] == 3 else Residual
        xavier = block is Residual and scheme == "Residual Sequential"
        return block.__name__, layers, 1, 64, xavier
    width, per_group = shapes["layer1.0.conv2.weight"][:2]
    if "layer1.0.conv3.weight" not in shapes:
        return BasicBlock.__name__, layers, 1, width, False
    groups = width // per_group
    return Bottleneck.__name__, layers, groups, width // groups, False


def _traits_of(row: Architecture) -> tuple:
    return row.block.__name__, row.layers, row.groups, row.width_per_group, row.name == "residual18_xavier"
