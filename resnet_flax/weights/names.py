"""How others name the same weights.

The networks here have torchvision's names. Each other scheme is one function from torchvision's name to its own; the
way back is a table of that function over every name in the family.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.entries import first_entries, representatives


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

# Every scheme has this entry, and under a name that ends in no other scheme's name for it.
_LANDMARK = "layer1.0.conv1.weight"


@cache
def _family_names() -> tuple[str, ...]:
    """Every entry name in the family, with as many blocks in each stage as the deepest stage of any network has."""
    deepest = max(max(row.layers) for row in ARCHITECTURES.values())
    names: dict[str, None] = {}
    for name in (name for architecture in representatives() for name in first_entries(architecture)):
        if match := re.fullmatch(r"(layer\d)\.0\.(.*)", name):  # block 0 has all that any block of its stage has
            names.update(dict.fromkeys(f"{match[1]}.{block}.{match[2]}" for block in range(deepest)))
        elif not name.startswith("layer"):
            names[name] = None
    return tuple(names)


@cache
def _torchvision_names(scheme: str) -> dict[str, str]:
    """{the scheme's name: torchvision's}; built once, since it takes seconds and is looked up for every entry."""
    return {SCHEMES[scheme](name): name for name in _family_names()}


@dataclass(frozen=True)
class Naming:
    """How a checkpoint names its entries: by a scheme, after a prefix such as "module."."""

    scheme: str
    prefix: str

    def to_torchvision(self, names: Iterable[str]) -> dict[str, str]:
        """{their name: torchvision's}; names that are not in the scheme stay as they are."""
        if self == Naming("torchvision", ""):  # no table is needed
            return {name: name for name in names}
        known = _torchvision_names(self.scheme)
        return {
            name: known.get(name.removeprefix(self.prefix), name) if name.startswith(self.prefix) else name
            for name in names
        }

    def renamed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The state_dict under torchvision's names.

        Raises:
            UserError: if two entries have the same one.
        """
        renamed: dict[str, str] = {}
        for key, name in self.to_torchvision(state_dict).items():
            if name in renamed:
                raise UserError(f"{renamed[name]} and {key} are both {name}; a file may hold one network only")
            renamed[name] = key
        return {name: state_dict[key] for name, key in renamed.items()}


def recognise_naming(names: Iterable[str]) -> Naming:
    """The scheme and prefix of a checkpoint's entry names.

    Raises:
        UserError: if none of them is a name in any scheme.
    """
    names = list(names)
    for scheme, theirs in SCHEMES.items():
        for name in names:
            prefix = name.removesuffix(theirs(_LANDMARK))
            if prefix != name and (not prefix or prefix.endswith(".")):
                return Naming(scheme, prefix)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise UserError(f"no naming scheme of ResNets known here has the entries {shown}")
