"""A folder of images whose labels are in a file: CSV, TSV, JSON or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from resnet_flax.data.class_list import read_class_list, read_text
from resnet_flax.data.columns import LABEL_NAMES
from resnet_flax.data.encoded import EncodedSource, Records, label_array
from resnet_flax.data.folder import read_image
from resnet_flax.data.layout import EXTENSIONS, image_files
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.splits import SPLITS, split_of
from resnet_flax.errors import UserError

FILE_NAMES = (
    "file",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "path",
    "image",
    "image_path",
    "image_id",
    "img",
)
MOST_BYTES = 2**28

Row = tuple[str, str | int, str]  # file, label, split ("" without)


class LabelledFiles(Records):
    """Image files with labels."""

    def __init__(self, paths: Sequence[str], labels: Sequence[str | int], names: dict[int, str], what: str):
        self.paths, self.names, self.labels = list(paths), names, label_array(labels, what)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> bytes:
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]


def open_labelled(directory: str, split: str, options: SourceOptions) -> EncodedSource:
    """`folder:DIR` with `--labels FILE`: a row of the file has an image's path in DIR, its label, maybe its split.

    Labels that are all integers are class numbers; other labels are classes, in their sorted order. A class list
    (`options.classes`) chooses, orders, renames and joins them. The images are in the order of the file.

    Raises:
        UserError: if the file cannot be read, names an image that is not there, or labels one twice.
    """
    root, file = Path(directory).expanduser(), options.labels
    assert file is not None
    spec = f"folder:{directory}"
    if not root.is_dir():
        raise UserError(f"no directory {root}; folder:DIR with --labels needs one with the images")
    rows, notes = _read_rows(file, options)
    paths, found = _paths(root, file, [name for name, _, _ in rows])
    notes += found
    labels = [label for _, label, _ in rows]
    names: dict[int, str] = {}
    if options.classes is not None:
        listed, numbers = read_class_list(options.classes)
        kept = [index for index, label in enumerate(labels) if str(label) in numbers]
        if ignored := sorted({str(label) for label in labels} - set(numbers)):
            notes.append(f"ignored, not in {options.classes}: {', '.join(ignored[:10])}")
        rows, paths = [rows[index] for index in kept], [paths[index] for index in kept]
        labels = [numbers[str(labels[index])] for index in kept]
        names = dict(enumerate(listed))
    stored: dict[str, Callable[[], LabelledFiles]] = {}
    splits = [_split(file, name) for _, _, name in rows]
    for chosen in (each for each in SPLITS if each in splits):
        members = [index for index, each in enumerate(splits) if each == chosen]
        mine, theirs = [paths[index] for index in members], [labels[index] for index in members]
        stored[chosen] = partial(LabelledFiles, mine, theirs, names, str(file))
    if "train" not in stored:
        raise UserError(f"{file} has no images for training" if rows else f"{file} labels no images of these classes")
    places = {each: f"{root}, by {file}" + (f", split {each}" if len(stored) > 1 else "") for each in stored}
    return EncodedSource(spec, split, stored, places, options, tuple(notes))


def _split(file: Path, name: str) -> str:
    split = split_of(name) if name else "train"
    if split is None:
        raise UserError(f"{file} has the split {name!r}; splits are train, val (also validation, valid, dev) and test")
    return split


def _read_rows(file: Path, options: SourceOptions) -> tuple[list[Row], list[str]]:
    """The rows, and notes about which columns were taken."""
    table = _read_table(file)
    if not table:
        raise UserError(f"{file} has no rows; it must have a file and a label in each")
    columns = list(table[0])
    if len(columns) < 2:
        raise UserError(f"{file} has the column {', '.join(columns) or '(none)'} alone; a row needs a file and a label")
    at_file = _column(file, columns, options.image, "--image", FILE_NAMES)
    at_label = _column(file, columns, options.label, "--label", LABEL_NAMES)
    notes = []
    if at_file is None or at_label is None:
        rest = [name for name in columns if name not in (at_file, at_label)]
        at_file = rest.pop(0) if at_file is None else at_file
        at_label = rest.pop(0) if at_label is None else at_label
        notes.append(f"of {file} the column {at_file!r} is taken for the file, and {at_label!r} for the label")
    at_split = next((name for name in columns if name.lower() == "split" and name not in (at_file, at_label)), None)
    rows: list[Row] = []
    for number, row in enumerate(table, 1):
        name, label = row.get(at_file), row.get(at_label)
        is_label = isinstance(label, str | int) and not isinstance(label, bool) and label != ""
        if not isinstance(name, str) or not name or not is_label:
            raise UserError(f"row {number} of {file} has the file {name!r} and the label {label!r}; both are needed")
        rows.append((name, label, str((row.get(at_split) or "") if at_split else "")))
    values = [label for _, label, _ in rows]
    if all(isinstance(value, int) or _is_number(value) for value in values):  # CSV has no integers
        rows = [(name, int(label), split) for name, label, split in rows]
    return rows, notes


def _is_number(text: str) -> bool:
    """Whether a text is an integer as it is usually written: "007" is a name."""
    return re.fullmatch(r"0|-?[1-9][0-9]{0,8}", text) is not None


def _column(file: Path, columns: list[str], named: str | None, option: str, known: tuple[str, ...]) -> str | None:
    """The column that an option names, or else the only one of a known name; None if there is none."""
    if named is not None:
        if named not in columns:
            raise UserError(f"{option} {named} is not a column of {file}, which has {', '.join(columns)}")
        return named
    found = [name for name in columns if name.lower().replace(" ", "_") in known]
    if len(found) > 1:
        raise UserError(f"{file} has several columns that may be it, {', '.join(found)}; choose one with {option}")
    return found[0] if found else None


def _read_table(file: Path) -> list[dict[str, Any]]:
    text, ending = read_text(file, MOST_BYTES), file.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _from_csv(file, text, "\t" if ending == ".tsv" else ",")
    try:
        if ending == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif ending == ".json":
            content = json.loads(text)
            is_map = isinstance(content, dict)
            rows = [{"file": name, "label": label} for name, label in content.items()] if is_map else content
        else:
            raise UserError(f"{file}: the name of a file of labels must end in .csv, .tsv, .json or .jsonl")
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} must have objects with a file and a label, or be an object {{file: label}}")
    return rows


def _from_csv(file: Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    """Rows by the names in the first one; where that names an image itself, by file and label."""
    try:
        lines = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as a table: {error}") from error
    if not lines:
        return []
    if any(len(row) != len(lines[0]) for row in lines):
        number = next(number for number, row in enumerate(lines, 1) if len(row) != len(lines[0]))
        raise UserError(f"row {number} of {file} has {len(lines[number - 1])} columns, and the first {len(lines[0])}")
    header = [name.strip() for name in lines[0]]
    if os.path.splitext(header[0])[1].lower() in EXTENSIONS:  # noqa: PTH122
        header = ["file", "label", *(f"column {number}" for number in range(3, len(header) + 1))][: len(header)]
        lines = [lines[0], *lines]
    if len(set(header)) != len(header):
        raise UserError(f"{file} has two columns of one name: {', '.join(header)}")
    return [dict(zip(header, (cell.strip() for cell in row), strict=True)) for row in lines[1:]]


def _paths(root: Path, file: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The path of each image, and notes. A name may lack its ending, as identifiers do."""
    images = image_files(root)
    relative = {os.path.relpath(path, root): path for path in images}
    stems: dict[str, list[str]] = {}
    for name, path in relative.items():
        stems.setdefault(os.path.splitext(name)[0], []).append(path)  # noqa: PTH122
    paths = []
    for name in names:
        wanted = os.path.normpath(name)
        candidates = [relative[wanted]] if wanted in relative else stems.get(wanted, [])
        if len(candidates) != 1:
            found = f"several files are it: {', '.join(candidates)}" if candidates else "there is no such image"
            raise UserError(f"{file} names {name}, but in {root} {found}")
        paths.append(candidates[0])
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{file} has two rows for {twice}")
    rest = len(images) - len(paths)
    return paths, [f"ignored, not in {file}: {rest:,} images in {root}"] if rest else []
