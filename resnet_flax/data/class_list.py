"""A file that lists the classes of a folder, in place of the folder names in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity.conversion.files import read_regular
from resnet_flax.errors import UserError

LIMIT = 2**24  # bytes


def read_text(path: Path, limit: int = LIMIT) -> str:
    """A text file of at most `limit` bytes, in UTF-8.

    Raises:
        UserError: if it cannot be read, or is something else.
    """
    path = path.expanduser()
    try:
        return read_regular(path, limit).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error})") from error


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes in their order: a line each, or a JSON list.

    Raises:
        UserError: if the file cannot be read, is empty, or has anything but names.
    """
    text = read_text(path)
    names = (
        _json(path, text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
    )
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must have the name of a class on each line, or be a .json file with a list of names")
    return tuple(names)


def read_class_list(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """(names of the classes, {folder: class number}) of a list or a map.

    A text file has a folder on each line, in the order of the class numbers, and after a tab the name of its class if
    that is another. A .json file has a list of folders, {folder: class number} (torchvision's class_to_idx) or {folder:
    name of its class}. Folders with the same number or name are one class.

    Raises:
        UserError: if the file cannot be read, or is none of these.
    """
    content = _folders(path, read_text(path))
    values = list(content.values())
    if values and all(isinstance(value, str) for value in values):
        names = tuple(dict.fromkeys(values))
        return names, {folder: names.index(name) for folder, name in content.items()}
    if values and all(type(value) is int for value in values) and set(values) == set(range(max(values) + 1)):
        folders = [[folder for folder, value in content.items() if value == number] for number in sorted(set(values))]
        return tuple("+".join(together) for together in folders), content
    raise UserError(
        f"{path} is not a list of classes; it must have a folder on each line, or be a .json file with a list of "
        "folders, {folder: number} with the numbers 0, 1, ... or {folder: class name}"
    )


def _folders(path: Path, text: str) -> dict[str, Any]:
    """{folder: number or name of its class}; empty if it is neither a list nor a map."""
    if path.suffix != ".json":
        rows = [line.partition("\t") for line in text.splitlines() if line.strip()]
        folders = {folder.strip(): name.strip() or folder.strip() for folder, _, name in rows}
        if len(folders) != len(rows):
            raise UserError(f"{path} lists a folder twice")
        return folders
    content = _json(path, text)
    if isinstance(content, list) and _is_list(content):
        return {folder: folder for folder in content}
    return content if isinstance(content, dict) else {}


def _is_list(content: list) -> bool:
    return all(isinstance(folder, str) for folder in content) and len(set(content)) == len(content)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
