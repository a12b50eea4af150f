"""Which of a network's outputs the class folders of a data set are, and a network that has only these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from parity.errors import needs_extra
from resnet_flax.data.class_list import read_class_names
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet

IMAGENET = 1000


class Columns(NamedTuple):
    """The outputs that a data set's classes are.

    Attributes:
        indices: the number of the output of each class.
        how: what was compared, for people.
    """

    indices: list[int]
    how: str


def columns_of(
    folders: Sequence[str], class_names: Sequence[str] | None, num_classes: int, synsets: Path | None = None
) -> Columns | None:
    """The outputs that the classes of a data set are; None where they are all of them in their order, or unknown.

    Folders are known by the network's names of its classes; for a network with ImageNet's 1,000 classes also by their
    wnids (n01440764), as in ImageNet-A, -R and -Sketch, or, where there are all thousand, by their numbers, as in
    ImageNet-V2, whose "10" comes before "2" in the order of folders.

    Args:
        folders: the names of the data's classes.
        class_names: of the network's outputs, where they are known.
        num_classes: of the network.
        synsets: a file with ImageNet's wnids in the order of the outputs, a line each; None takes timm's.

    Raises:
        UserError: for a wnid that ImageNet's classes lack.
        MissingPackageError: if timm's list is needed and not installed.
    """
    names = list(class_names or ())
    if list(folders) == names:
        return None
    if names and len(set(names)) == len(names) and set(folders) <= set(names):
        return Columns([names.index(folder) for folder in folders], "their names")
    if num_classes != IMAGENET:
        return None
    if set(folders) == {str(number) for number in range(num_classes)}:
        return Columns([int(folder) for folder in folders], "the numbers of their folders")
    if not all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return None
    if synsets is None and len(folders) == IMAGENET:  # ImageNet's classes are numbered in this order
        return None
    wnids = read_class_names(synsets) if synsets is not None else _imagenet_wnids()
    if len(wnids) != num_classes or len(set(wnids)) != num_classes:
        raise UserError(f"{synsets} has {len(set(wnids)):,} different wnids, and the network {num_classes:,} classes")
    if unknown := sorted(set(folders) - set(wnids)):
        raise UserError(
            f"{', '.join(unknown[:3])} {'is' if len(unknown) == 1 else 'are'} not among ImageNet's 1,000 classes; "
            "remove these folders, or give the network's wnids with --synsets FILE"
        )
    return Columns([wnids.index(folder) for folder in folders], "the wnids of their folders")


def _imagenet_wnids() -> tuple[str, ...]:
    with needs_extra("torch", "finding ImageNet's classes by their wnids", "give a list of them with --synsets FILE"):
        from timm.data import ImageNetInfo
    return tuple(ImageNetInfo().label_names())


def restricted(model: ResNet, indices: Sequence[int]) -> ResNet:
    """The same network with these outputs alone, in this order; the model itself is left as it is."""
    model = nnx.clone(model)
    assert model.fc is not None
    columns = jnp.asarray(indices)
    model.fc.kernel.set_value(model.fc.kernel[...][:, columns])
    if model.fc.bias is not None:
        model.fc.bias.set_value(model.fc.bias[...][columns])
    model.fc.out_features = model.num_classes = len(columns)
    return model
