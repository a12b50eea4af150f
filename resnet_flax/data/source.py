"""What every data source offers, and how splits are named and made."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_flax.data.transforms import EvaluationTransform

EVALUATION_SPLITS = ("test", "val", "validation", "valid")


class Sample(TypedDict):
    """One labelled image."""

    image: np.ndarray  # uint8 (H, W, C)
    label: int


class Source:
    """A labelled image set with random access: `len(source)` and `source[i] -> {"image", "label"}`.

    Images are uint8 (H, W, C) and may differ in size; labels are indices into `class_names`. A source can be pickled,
    so that worker processes can read it. A damaged image raises `CorruptImage`, which names its file.
    """

    spec: str
    split: str
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
        """Remarks for `data show`, one sentence each."""
        return []

    def __repr__(self) -> str:
        return f"<{self.spec} {self.split}: {len(self):,} images, {self.num_classes} classes>"


def split_names(split: str) -> tuple[str, ...]:
    """The names that a split may have on disk, the given one first: all but "train" are synonyms.

    Raises:
        UserError: for any other name.
    """
    if split == "train":
        return ("train",)
    if split not in EVALUATION_SPLITS:
        raise UserError(f"no split {split!r}; splits are train, {', '.join(EVALUATION_SPLITS)}")
    return (split, *(name for name in EVALUATION_SPLITS if name != split))


def stratified_split(labels: Sequence[int] | np.ndarray, split: str, *, test_fraction: float = 0.2) -> np.ndarray:
    """The indices, ascending, of one side of a fixed split, for a set that comes without one.

    The test set gets the same fraction of each class (rounded; a class of two or more images has at least one on either
    side), drawn with a fixed seed: the split depends only on the labels.
    """
    labels = np.asarray(labels)
    training = split_names(split)[0] == "train"
    kept = []
    for label in np.unique(labels):
        members = np.random.default_rng([0, int(label)]).permutation(np.flatnonzero(labels == label))
        tests = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        kept.append(members[tests:] if training else members[:tests])
    return np.sort(np.concatenate(kept))
