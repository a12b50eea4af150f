"""How others name the same weights, and which architecture a checkpoint holds.

The networks here are named as torchvision's. Each other scheme is one function from torchvision's name to its own; the
way back is that function turned around over every name the family can have.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models.registry import ARCHITECTURES, Architecture, build_model
from resnet_flax.models.residual import Residual, Residual3x3
from resnet_flax.models.resnet import BasicBlock, Bottleneck, ResNet

Shape = tuple[int, ...]


def _torchvision(name: str) -> str:
    return name


def _hugging_face(name: str) -> str:
    """transformers' `ResNetForImageClassification`."""
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name):
        stage, block, rest = int(match[1]) - 1, match[2], match[3]
        rest = rest.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
        rest = re.sub(r"conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", rest)
        rest = re.sub(r"bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", rest)
        return f"resnet.encoder.stages.{stage}.layers.{block}.{rest}"
    name = re.sub(r"^conv1", "resnet.embedder.embedder.convolution", name)
    name = re.sub(r"^bn1", "resnet.embedder.embedder.normalization", name)
    return re.sub(r"^fc", "classifier.1", name)


def _hugging_face_backbone(name: str) -> str:
    """transformers' `ResNetModel`, which has no head."""
    return _hugging_face(name).removeprefix("resnet.")


def _residual_blocks(name: str) -> str:
    """The Residual network as a Sequential of a stem, `resnet_block1` to `resnet_block4`, and a head."""
    return _replace_start(name, {"conv1": "0", "bn1": "1", "fc": "fc.1", "layer": "resnet_block"})


def _residual_sequential(name: str) -> str:
    """The Residual network as one Sequential whose stages are Sequentials."""
    return _replace_start(name, {"conv1": "0.0", "bn1": "0.1", "fc": "7", "layer": ""})


def _replace_start(name: str, replacements: Mapping[str, str]) -> str:
    for start, theirs in replacements.items():
        if name.startswith(start):
            return theirs + name.removeprefix(start)
    return name


SCHEMES: dict[str, Callable[[str], str]] = {
    "torchvision": _torchvision,
    "Hugging Face": _hugging_face,
    "Hugging Face without a head": _hugging_face_backbone,
    "Residual blocks": _residual_blocks,
    "Residual Sequential": _residual_sequential,
}
"""From torchvision's name of an entry to each scheme's."""

# Every scheme has it, and none has a name that ends in another's.
_LANDMARK = "layer1.0.conv1.weight"


@cache
def _family_names() -> tuple[str, ...]:
    """Every entry name that any network of the family has."""
    deepest = max(max(row.layers) for row in ARCHITECTURES.values())
    modules = ["conv1", "bn1"]
    for stage in range(1, 5):
        for block in range(deepest):
            parts = [*(f"conv{i}" for i in (1, 2, 3)), *(f"bn{i}" for i in (1, 2, 3)), "downsample.0", "downsample.1"]
            modules += [f"layer{stage}.{block}.{part}" for part in parts]
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return tuple(f"{module}.{field}" for module in [*modules, "fc"] for field in fields)


@dataclass(frozen=True)
class Naming:
    """How a checkpoint names its entries: a scheme, behind a prefix such as "module."."""

    scheme: str
    prefix: str

    def to_torchvision(self, names: Iterable[str]) -> dict[str, str]:
        """{their name: torchvision's}; names that the scheme does not know stay as they are."""
        theirs = {self.prefix + SCHEMES[self.scheme](name): name for name in _family_names()}
        return {name: theirs.get(name, name) for name in names}

    def renamed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The state_dict under torchvision's names.

        Raises:
            UserError: if two entries have the same one.
        """
        renamed: dict[str, str] = {}
        for key, name in self.to_torchvision(state_dict).items():
            if name in renamed:
                raise UserError(f"{renamed[name]} and {key} are both {name}: there are two networks in one file")
            renamed[name] = key
        return {name: state_dict[key] for name, key in renamed.items()}


def recognise_naming(names: Iterable[str]) -> Naming:
    """The scheme and prefix of a checkpoint's entry names.

    Raises:
        UserError: if no scheme's names are among them.
    """
    names = list(names)
    for scheme, theirs in SCHEMES.items():
        for name in names:
            prefix = name.removesuffix(theirs(_LANDMARK))
            if prefix != name and (not prefix or prefix.endswith(".")):
                return Naming(scheme, prefix)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise UserError(f"these are not the weights of a ResNet: no naming scheme known here has {shown}")


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
