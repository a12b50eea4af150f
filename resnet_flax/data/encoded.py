"""What sources of encoded images have in common: splits, classes from stored labels, and decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from resnet_flax.data.decoding import decode_rgb
from resnet_flax.data.source import Sample, Source, SourceOptions
from resnet_flax.data.splits import choose
from resnet_flax.errors import UserError

MOST_CLASSES = 1_000_000  # a larger integer numbers the images, and not their classes


class Records:
    """The images of one stored split, in order; picklable.

    Attributes:
        labels: int64 (N,), or an object array of N strings; None if there are none.
        names: {label: name of the class} of integer labels, as far as they are known.
        notes: what was assumed or ignored, one sentence each.
    """

    labels: np.ndarray | None = None
    names: Mapping[int, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def prepare(self) -> None:
        """Makes what `image` needs; called once, before images are read or the records are pickled."""

    def image(self, index: int) -> bytes:
        """An encoded image; a `CorruptImage` if it cannot be read."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What errors call an image."""
        raise NotImplementedError


def label_array(labels: Sequence[int | str], what: str) -> np.ndarray:
    """Labels as `Records.labels`; integers beside strings count as strings.

    Raises:
        UserError: for an integer of more than 64 bits.
    """
    if not all(isinstance(label, int) for label in labels):
        return np.array([str(label) for label in labels], object)
    try:
        return np.array(labels, np.int64)
    except OverflowError as error:
        raise UserError(
            f"{what} has the label {max(map(int, labels), key=abs)}, which is not a class number"
        ) from error


def classes_of(spec: str, records: Records) -> tuple[str, ...]:
    """The classes of a training set.

    Integers are class numbers, and the classes 0, 1, ... up to the largest; strings are classes in their sorted order,
    as folders are.

    Raises:
        UserError: for no labels, or integers that number no classes.
    """
    labels = records.labels
    if labels is None or not len(labels):
        raise UserError(f"{spec} has no labels" if len(records) else f"{spec} has no images")
    if labels.dtype.kind != "i":
        return tuple(sorted(set(labels.tolist())))
    least, largest = int(labels.min()), int(max(labels.max(), *records.names, -1))
    if least < 0 or largest >= MOST_CLASSES:
        raise UserError(
            f"{spec} has the label {least if least < 0 else largest}; class numbers are 0 and up, and below "
            f"{MOST_CLASSES:,}"
        )
    return tuple(records.names.get(number, str(number)) for number in range(largest + 1))


def class_numbers(
    spec: str, split: str, records: Records, class_names: tuple[str, ...], *, are_numbers: bool
) -> np.ndarray:
    """The labels of a split as int64 (N,) indices into the classes of the training set.

    `are_numbers` is whether the labels of that are integers.

    Raises:
        UserError: for classes that the training set lacks or has under another name.
    """
    labels = records.labels
    assert labels is not None
    if (labels.dtype.kind == "i") != are_numbers:
        kinds = ("strings", "integers")
        raise UserError(
            f"the labels of the split {split} of {spec} are {kinds[not are_numbers]}, and those of the training set "
            f"{kinds[are_numbers]}"
        )
    if are_numbers:
        for number, name in records.names.items():
            known = class_names[number] if number < len(class_names) else None
            if name != known:
                theirs = "has no such class" if known is None else f"calls it {known!r}"
                raise UserError(
                    f"the class names of {spec} differ: class {number} of its split {split} is {name!r}, and the "
                    f"training set {theirs}"
                )
        unknown = sorted({int(label) for label in labels if not 0 <= label < len(class_names)})
        numbers = labels.astype(np.int64)
    else:
        known = {name: number for number, name in enumerate(class_names)}
        unknown = sorted(set(labels.tolist()) - set(known))
        numbers = np.array([known.get(label, -1) for label in labels.tolist()], np.int64)
    if unknown:
        raise UserError(
            f"the split {split} of {spec} has classes that are not in the training set: "
            f"{', '.join(map(str, unknown[:10]))}"
        )
    return numbers


def _absent(records: Records, count: int) -> list[str]:
    """A note on the classes without training images, which only integers can leave."""
    labels = records.labels
    if labels is None or labels.dtype.kind != "i" or not len(absent := np.setdiff1d(np.arange(count), labels)):
        return []
    shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
    return [f"labels are class numbers, and {len(absent):,} of the {count:,} classes have no training images: {shown}"]


def _has_labels(records: Records) -> bool:
    labels = records.labels
    return labels is not None and len(labels) > 0 and not (labels.dtype.kind == "i" and int(labels.max()) < 0)


class EncodedSource(Source):
    """Encoded images with stored labels; RGB of any size, decoded on access.

    Args:
        spec: the data set, as on the command line.
        split: what is asked for.
        stored: {split: opens its records}; a split is opened only if it is used, or may be used.
        places: {split: where its records are}.
        notes: what was assumed or ignored.
    """

    channels = 3

    def __init__(
        self,
        spec: str,
        split: str,
        stored: Mapping[str, Callable[[], Records]],
        places: Mapping[str, str],
        options: SourceOptions,
        notes: tuple[str, ...] = (),
    ):
        opened = functools.cache(lambda name: stored[name]())
        choice = choose(split, stored, options.split_by, name=spec, usable=lambda name: _has_labels(opened(name)))
        self.spec, self._decoding = spec, options.decoding
        train, self._records = opened("train"), opened(choice.stored)
        self._records.prepare()
        self.class_names = classes_of(spec, train)
        are_numbers = train.labels is not None and train.labels.dtype.kind == "i"
        notes = (*notes, *_absent(train, len(self.class_names)))
        labels = class_numbers(spec, choice.stored, self._records, self.class_names, are_numbers=are_numbers)
        self._kept = choice.indices(labels)
        self._labels = labels[self._kept]
        self.split, self.splits, self.origin = choice.split, choice.splits, choice.origin(places[choice.stored])
        self._notes = [*notes, *self._records.notes, *([choice.note] if choice.note else [])]
        if not len(self):
            raise UserError(f"no images for split {split!r} in {spec}: a class needs at least two to have one held out")

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        return self._notes

    def __len__(self) -> int:
        return len(self._kept)

    def encoded(self, index: int) -> bytes:
        return self._records.image(int(self._kept[index]))

    def __getitem__(self, index: int) -> Sample:
        name = self._records.name(int(self._kept[index]))
        return {"image": decode_rgb(self.encoded(index), name, self._decoding), "label": int(self._labels[index])}
