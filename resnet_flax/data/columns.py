"""Which columns of a table are the image and the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_flax.data.source import SourceOptions
from resnet_flax.errors import UserError

LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "cls")
"""What a column of integers or strings is called if it is the label; one of type ClassLabel may have any name."""

IMAGE, BYTES, CLASS_LABEL, INTEGER, STRING = "image", "bytes", "class label", "integer", "string"


@dataclass(frozen=True)
class Column:
    """A column of a table, and what kind of values it has: one of the above, or any other word for it."""

    name: str
    kind: str


@dataclass(frozen=True)
class Chosen:
    """The columns that are used.

    Attributes:
        image, label: their names; label is None if the table has none.
        notes: what was assumed.
    """

    image: str
    label: str | None
    notes: tuple[str, ...]


def choose_columns(spec: str, columns: Sequence[Column], options: SourceOptions) -> Chosen:
    """The image and the label of a table, by the types of its columns or as `options` name them.

    Raises:
        UserError: for none or several that may be it.
    """
    found = ", ".join(f"{column.name} ({column.kind})" for column in columns)
    label, notes = _label(spec, columns, options, found)
    return Chosen(_image(spec, columns, options, found), label, notes)


def _named(columns: Sequence[Column], *kinds: str) -> list[str]:
    return [column.name for column in columns if column.kind in kinds]


def _image(spec: str, columns: Sequence[Column], options: SourceOptions, found: str) -> str:
    images = _named(columns, IMAGE) or _named(columns, BYTES)
    if options.image is not None:
        if options.image not in _named(columns, IMAGE, BYTES):
            raise UserError(f"--image {options.image} is not a column of images of {spec}, which has {found}")
        return options.image
    if len(images) != 1:
        several = f"several columns of images, {', '.join(images)}; choose one with --image"
        raise UserError(f"{spec} has {several if images else f'no column of images; its columns are {found}'}")
    return images[0]


def _label(
    spec: str, columns: Sequence[Column], options: SourceOptions, found: str
) -> tuple[str | None, tuple[str, ...]]:
    labels, plain = _named(columns, CLASS_LABEL), _named(columns, INTEGER, STRING)
    if options.label is not None:
        if options.label not in (*labels, *plain):
            raise UserError(
                f"--label {options.label} is not a column of class labels, integers or strings of {spec}, which has "
                f"{found}"
            )
        return options.label, ()
    called = [name for name in plain if name.lower() in LABEL_NAMES]
    candidates = labels or (plain if len(plain) == 1 else called)
    if len(candidates) > 1:
        raise UserError(
            f"{spec} has several columns that may be the label, {', '.join(candidates)}; choose one with --label"
        )
    if not candidates and plain:
        raise UserError(f"{spec} has no column that is the label by its type or name; it has {found}; name it: --label")
    if not candidates and any(column.kind not in (IMAGE, BYTES, "null") for column in columns):
        raise UserError(f"{spec} has no labels: it has {found}; class labels, integers or strings can be labels")
    if not candidates:
        return None, ()
    note = f"the classes of {spec} are the values of its column {candidates[0]}, which is not a class label by its type"
    return candidates[0], () if labels else (note,)
