"""What weights are used with, where the user knows better than what came with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from parity.options import Pixels, Range, option_group
from resnet_flax.data.class_list import read_class_names
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.weights.files import Note, Weights
from resnet_flax.weights.metadata import Metadata


@option_group
@dataclass(frozen=True, kw_only=True)
class Use:
    """The names of the classes, and the preprocessing of the images."""

    class_names: Path | None = None
    """A file with the name of a class on each line, or a .json list of them, in place of the weights' own."""
    resize: Pixels | None = None
    """Resize the shorter side of images to this, in place of the weights' own preprocessing."""
    crop: Pixels | None = None
    """Then cut out the central square of this side."""
    mean: Annotated[tuple[float, ...] | None, Range()] = None
    """Per-channel mean of images in [0, 1], or one for all channels."""
    std: Annotated[tuple[float, ...] | None, Range(gt=0)] = None
    """Per-channel standard deviation."""

    def names(self) -> tuple[str, ...] | None:
        """The names in the file, if one is given; a UserError if it cannot be read."""
        return None if self.class_names is None else read_class_names(self.class_names)

    def changed(self, own: Preprocessing, channels: int) -> Preprocessing:
        """The preprocessing with what the options give in place of its own, for images of that many channels.

        Raises:
            UserError: for a mean or standard deviation of another number of channels.
        """
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise UserError(f"{option} has {len(values)} values, but the network takes {channels} channel(s)")
        sizes = {"resize_size": self.resize, "crop_size": self.crop}
        transform = replace(own.transform, **{name: size for name, size in sizes.items() if size is not None})
        return replace(own, transform=transform, mean=self.mean or own.mean, std=self.std or own.std)

    def kept_with(self, weights: Weights) -> Weights:
        """The weights with what the options give kept in their metadata.

        Raises:
            UserError: for another number of names than classes, or values that do not fit the network.
        """
        metadata, notes, identity = dict(weights.metadata), weights.notes, weights.identity
        if (names := self.names()) is not None:
            if len(names) != identity.num_classes:
                raise UserError(
                    f"{self.class_names} has {len(names):,} class names, but {weights.source} has "
                    f"{identity.num_classes:,} classes"
                )
            metadata["class_names"] = json.dumps(list(names))
        if any(value is not None for value in (self.resize, self.crop, self.mean, self.std)):
            own = Metadata(metadata).preprocessing
            used = self.changed((own or Preprocessing()).for_channels(identity.in_channels), identity.in_channels)
            if own is None:
                text = f"no preprocessing came with {weights.source}; kept, the rest of it assumed: {used}"
                notes = (*notes, Note(text))
            metadata |= used.to_metadata()
        return replace(weights, metadata=metadata, notes=notes)
