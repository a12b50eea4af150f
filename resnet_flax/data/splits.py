"""Splits: which names mean one, which is used when one is asked for, and what is held out where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from resnet_flax.errors import UserError

SPLITS = ("train", "val", "test")
HELD_OUT = 0.2
"""The fraction of each class that is held out of a data set without splits."""

SplitBy = float | Literal["test"] | None
"""What training is evaluated on: None for what there is, "test", or a fraction held out of the training set."""

_WORDS = {
    "train": r"train|training|trainval|trn",
    "val": r"val|valid|validate|validating|validation|dev|devel|development|eval|evaluate|evaluation",
    "test": r"test|tests|testing|tst|holdout|heldout",
}
_SUFFIX = r"(?:sets?|data|datasets?|images?|imgs?|pics|pictures|photos|split|folder|dir|samples|ing|\d+)*"
_PATTERNS = {split: re.compile(rf"(?:{words}){_SUFFIX}") for split, words in _WORDS.items()}


def split_of(name: str) -> str | None:
    """The split that a name means in its usual spellings (Training, seg_test, testset, valImages2017), or None.

    The name is cut into words at punctuation and at capitals; one of them must be a word for a split, possibly with
    "set", "data", "images" or a number attached. "trainers" and "testudo" are none. A name with words for two splits is
    none either, but train_val and trainval, which are both parts of training.
    """
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name)
    found = [
        split for word in [name, *words] for split, pattern in _PATTERNS.items() if pattern.fullmatch(word.lower())
    ]
    kinds = set(found)
    if kinds == {"train", "val"} and re.fullmatch(r"(?i).*train\W?_?val(?:id|idation)?", name):
        return "train"
    return found[0] if len(kinds) == 1 else None


def canonical(split: str) -> str:
    """ "train", "val" or "test" for any name of a split.

    Raises:
        UserError: for a name that means none.
    """
    found = split_of(split)
    if found is None:
        raise UserError(f"no split {split!r}; splits are train, val (also validation, valid, dev) and test")
    return found


def named_splits(spec: str, names: Collection[str]) -> dict[str, str]:
    """{split: the one of `names` that means it}; names that mean none are left out.

    Raises:
        UserError: if several may be one split, and none is exactly train, validation or test.
    """
    chosen = {}
    for split in SPLITS:
        candidates = [name for name in names if split_of(name) == split]
        exact = _long(split)
        if exact in candidates or len(candidates) == 1:
            chosen[split] = exact if exact in candidates else candidates[0]
        elif candidates:
            raise UserError(f"{spec} has several splits that may be {split!r}: {', '.join(candidates)}")
    return chosen


@dataclass(frozen=True)
class Choice:
    """The images that a split is.

    Attributes:
        split: its name.
        stored: the stored split that they are in.
        part: all of that split, or what `held_out` leaves or takes of it.
        fraction: of each class that is held out.
        note: what was assumed; None for what was asked for.
        splits: all splits that have images of their own.
    """

    split: str
    stored: str
    part: Literal["all", "rest", "held out"]
    fraction: float
    note: str | None
    splits: tuple[str, ...]

    def indices(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """The indices of the images in the stored split, ascending; `labels` are all of its."""
        if self.part == "all":
            return np.arange(len(labels))
        return held_out(labels, self.fraction, rest=self.part == "rest")

    def origin(self, place: str) -> str:
        """Where the images are, for the place of the stored split."""
        if self.part == "all":
            return place
        if self.part == "rest":
            return f"{place} without the held-out {self.fraction:.0%} of each class"
        return f"{self.fraction:.0%} of each class of {place}, held out with a fixed seed"


def choose(
    split: str,
    stored: Collection[str],
    split_by: SplitBy = None,
    *,
    name: str,
    usable: Callable[[str], bool] = lambda stored: True,
) -> Choice:
    """Which images a split is.

    A set with "val" has all three splits as they are stored; "test" is then looked at only if it is asked for. Without
    "val" what is asked for by that name is "test", and the other way round; a set with "train" alone has a fifth of
    each class held out.

    Args:
        split: what is asked for, in any spelling.
        stored: the splits that the set has; "train" must be one.
        split_by: see `SplitBy`.
        name: of the set, for messages.
        usable: whether a stored split has labels; asked only about what would be used.

    Raises:
        UserError: for an unknown split, or a "val" without labels beside a "test".
    """
    split = canonical(split)
    if isinstance(split_by, float):
        return _held_out_of_training(split, stored, split_by, usable)
    own = ("train", *(other for other in ("val", "test") if other in stored))
    if split_by is None and "val" in stored and split != "test":
        if usable("val"):  # also where training is asked for: what is held out must be out of it
            return Choice(split, split, "all", 0.0, None, own)
        if "test" in stored:
            raise UserError(
                f"the validation split of {name} has no labels or class folders, and the test split is not used in its "
                "place unasked; give --split-by test, or --split-by 0.1 to hold out a tenth of the training set"
            )
    present = [other for other in ("test", "val") if other in stored and usable(other)]
    if split_by == "test" and "test" not in present:
        raise UserError(f"--split-by test needs a test split with labels, which {name} lacks")
    if not present:
        part = "rest" if split == "train" else "held out"
        unusable = " and ".join(f"its {_long(other)} split" for other in ("val", "test") if other in stored)
        note = (
            f"{name}: without labels or class folders {unusable} cannot be used; {HELD_OUT:.0%} of each class of the "
            "training set is held out instead"
        )
        name_of = "train" if split == "train" else "test"
        return Choice(name_of, "train", part, HELD_OUT, note if unusable else None, ("train", "test"))
    used = "train" if split == "train" else present[0]
    assumed = used != split and split_by is None
    note = f"{name} has no {_long(split)} split with labels; its {_long(used)} split is used" if assumed else None
    return Choice(used, used, "all", 0.0, note, own)


def _held_out_of_training(
    split: str, stored: Collection[str], fraction: float, usable: Callable[[str], bool]
) -> Choice:
    own = ("train", "val", *(["test"] if "test" in stored else []))
    if split == "train":
        return Choice("train", "train", "rest", fraction, None, own)
    if split == "test" and "test" in stored and usable("test"):
        return Choice("test", "test", "all", 0.0, None, own)
    note = "there is no test split with labels; the images held out of training are used" if split == "test" else None
    return Choice("val", "train", "held out", fraction, note, own)


def _long(split: str) -> str:
    return "validation" if split == "val" else split


def held_out(labels: Sequence[int] | np.ndarray, fraction: float = HELD_OUT, *, rest: bool = False) -> np.ndarray:
    """The indices, ascending, of the images held out of a set, or with `rest` of those that remain.

    Of each class the same fraction is held out (rounded; a class of two or more images has at least one on either
    side), drawn with a fixed seed: the split depends only on the labels.
    """
    labels = np.asarray(labels)
    kept = []
    for label in np.unique(labels):
        members = np.random.default_rng([0, int(label)]).permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        kept.append(members[count:] if rest else members[:count])
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
