"""What every data source offers, and the one place that turns a `--data` spec into a source."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_flax.data.transforms import EvaluationTransform

FORMS = "digits, idx:DIR, folder:DIR, tfds:NAME[/CONFIG][:VERSION] or synthetic:HxWxC:N"
LOCATED = ("idx", "folder")  # forms whose rest is a directory
EVALUATION_SPLITS = ("test", "val", "validation", "valid")


class Sample(TypedDict):
    """One labelled image."""

    image: np.ndarray  # uint8 (H, W, C)
    label: int


class Source:
    """A labelled image set with random access: `len(source)` and `source[i] -> {"image", "label"}`.

    Images are uint8 (H, W, C) and may differ in size; labels are positions in `class_names`. A source can be pickled,
    so worker processes can read it. A damaged image raises `CorruptImage` naming its file.
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
        """The image's file as it is stored; None where there is none."""
        return None

    def transformed(self, transform: EvaluationTransform | None) -> np.ndarray | None:
        """All images through a deterministic transform, uint8 (N, H, W, C), done once and kept.

        None where they differ in size or need over 1 GiB: then they are read one by one.
        """
        return None

    def notes(self) -> list[str]:
        """What a look at the source should tell beside its figures, one sentence each."""
        return []

    def __repr__(self) -> str:
        return f"<{self.spec} {self.split}: {len(self):,} images, {self.num_classes} classes>"


def split_names(split: str) -> tuple[str, ...]:
    """The names a split may go by on disk, the asked-for one first: "val", "validation" and "test" are synonyms."""
    if split == "train":
        return ("train",)
    if split not in EVALUATION_SPLITS:
        raise UserError(f"no split {split!r}; splits are train, {', '.join(EVALUATION_SPLITS)}")
    return (split, *(name for name in EVALUATION_SPLITS if name != split))


def stratified_split(labels: Sequence[int] | np.ndarray, split: str, *, test_fraction: float = 0.2) -> np.ndarray:
    """The indices, ascending, of one side of a fixed split of a set that comes without one.

    Each class gives the same fraction of its images (rounded; at least one stays on each side where it has two) to the
    test set, drawn with a fixed seed, so the split depends on nothing but the labels.
    """
    labels = np.asarray(labels)
    training = split_names(split)[0] == "train"
    kept = []
    for label in np.unique(labels):
        members = np.random.default_rng([0, int(label)]).permutation(np.flatnonzero(labels == label))
        tests = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        kept.append(members[tests:] if training else members[:tests])
    return np.sort(np.concatenate(kept))


def absolute(spec: str) -> str:
    """The spec with an absolute path, where it has one."""
    scheme, _, rest = spec.partition(":")
    return f"{scheme}:{Path(rest).expanduser().absolute()}" if scheme in LOCATED and rest else spec


def open_source(
    spec: str, split: str = "train", *, data_dir: str | Path | None = None, may_prepare: bool = True
) -> Source:
    """Opens the data set that `spec` names.

    Args:
        spec: `digits`, `idx:DIR`, `folder:DIR`, `tfds:NAME[/CONFIG][:VERSION]` or `synthetic:HxWxC:N`.
        split: "train", or "test" (also "val", "validation"), resolved to what the source calls it.
        data_dir: where TFDS data sets lie; default TFDS's own, `~/tensorflow_datasets`.
        may_prepare: whether a TFDS set that is not there may be downloaded and prepared.

    Raises:
        UserError: unknown spec, or nothing usable there; the sentence says what was expected.
    """
    split_names(split)
    scheme, colon, rest = spec.partition(":")
    keywords: dict[str, Any] = {}
    # Imported on demand: nobody pays for another source's libraries.
    if scheme == "digits" and not colon:
        from resnet_flax.data.arrays import open_digits as opener
    elif scheme == "idx" and rest:
        from resnet_flax.data.arrays import open_idx as opener
    elif scheme == "folder" and rest:
        from resnet_flax.data.folder import FolderSource as opener
    elif scheme == "synthetic" and rest:
        from resnet_flax.data.synthetic import SyntheticSource as opener
    elif scheme == "tfds" and rest:
        from resnet_flax.data.tfds import TfdsSource as opener

        keywords = {"data_dir": Path(data_dir).expanduser() if data_dir else None, "may_prepare": may_prepare}
    else:
        schemes = ("digits", *LOCATED, "tfds", "synthetic")
        near = [f"{name}{colon}{rest}" for name in difflib.get_close_matches(scheme, schemes, n=1)]
        likely = f"folder:{spec}" if Path(spec).is_dir() else next(iter(near), spec)
        hint = f"; did you mean {likely} ?" if likely != spec else ""
        raise UserError(f"unknown data spec {spec!r}; expected {FORMS}{hint}")
    return opener(rest, split, **keywords)
