"""What every data source offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import numpy as np
import tyro

from parity.options import Range, option_group
from resnet_flax.data.decoding import Decoding
from resnet_flax.data.splits import SplitBy

if TYPE_CHECKING:
    from resnet_flax.data.transforms import EvaluationTransform


class Sample(TypedDict):
    """One labelled image."""

    image: np.ndarray  # uint8 (H, W, C)
    label: int


@option_group
@dataclass(frozen=True)
class SourceOptions:
    """How a data set is read, where that is not the set's own business."""

    split_by: Annotated[SplitBy, Range(gt=0, lt=1)] = None
    """What training is evaluated on: test, or a fraction of each class held out of the training set with a fixed seed.
    By default the validation split; without one the test split; without both a fifth of each class."""
    classes: Path | None = None
    """A folder's classes: a file with a class folder (or a label of --labels) on each line, in the order of the class
    numbers, or .json."""
    allow_empty: bool = False
    """Allow class folders without images."""
    labels: Path | None = None
    """Labels of the images in a folder without class folders: a .csv, .tsv, .json or .jsonl file with the columns file
    and label, and perhaps split."""
    image: str | None = None
    """The column of a hf: or parquet: set that is the image, if several may be, or the ending in wds: (left.jpg)."""
    label: str | None = None
    """The column or feature that is the label, if several may be or none is a class label; in wds: an ending, or a key
    of .json; with --labels a column of that file."""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)


class Source:
    """A labelled image set with random access: `len(source)` and `source[i] -> {"image", "label"}`.

    Images are uint8 (H, W, C) and may differ in size; labels are indices into `class_names`. A source can be pickled,
    so that worker processes can read it. A damaged image raises `CorruptImage`, which names its file.

    Attributes:
        spec: the data set, as on the command line.
        split: the split that these images are: "train", "val" or "test".
        origin: where they are, and whether they are held out of others: a path, or a split of TFDS.
        splits: the splits of the data set that have images of their own.
    """

    spec: str
    split: str
    origin: str = ""
    splits: tuple[str, ...] = ("train", "test")
    class_names: tuple[str, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def labels(self) -> np.ndarray:
        """Every label, int64 (N,), without decoding an image where the source can avoid it."""
        return np.array([self[i]["label"] for i in range(len(self))], np.int64)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def encoded(self, index: int) -> bytes | None:
        """The stored image file; None if the source has none."""
        return None

    def transformed(self, transform: EvaluationTransform | None) -> np.ndarray | None:
        """All images after a deterministic transform, uint8 (N, H, W, C), computed once and kept.

        None if they differ in size or need more than 1 GiB: then they are read one by one.
        """
        return None

    def notes(self) -> list[str]:
        """What was assumed or ignored, one sentence each."""
        return []

    def __repr__(self) -> str:
        return f"<{self.spec} {self.split}: {len(self):,} images, {self.num_classes} classes>"
