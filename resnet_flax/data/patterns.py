"""Files by patterns: `shards/train-{000..127}.tar`, `data/*.parquet`, or a directory; and the splits they are of."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from parity.conversion.files import open_regular
from resnet_flax.data.splits import split_of
from resnet_flax.errors import UserError

MOST_FILES = 1_000_000

_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a shell makes of `{a,b}` and `{000..127}`, in its order; other braces stay."""
    for match in _BRACES.finditer(pattern):
        inner = match.group(1)
        if numbers := _RANGE.fullmatch(inner):
            first, last = numbers.groups()
            step = 1 if int(first) <= int(last) else -1
            width = max(map(len, (first, last))) if "0" in (first[0], last[0]) else 0
            values: Iterator[str] = (f"{n:0{width}}" for n in range(int(first), int(last) + step, step))
        elif "," in inner:
            values = iter(inner.split(","))
        else:
            continue
        for value in values:
            for rest in expand_braces(pattern[match.end() :]):
                yield pattern[: match.start()] + value + rest
        return
    yield pattern


def matching_files(spec: str, pattern: str, ending: str) -> list[Path]:
    """The regular files that a pattern means, in the order of its braces, and sorted where it has * ? or [].

    Args:
        spec: what errors call the data set.
        pattern: of files, or a directory, which stands for the files in it.
        ending: of the files in a directory, such as ".tar".

    Raises:
        UserError: if there is none, or one that the pattern names is missing or no regular file.
    """
    found: dict[str, None] = {}
    for number, name in enumerate(expand_braces(os.path.expanduser(pattern))):  # noqa: PTH111 - a pattern is no path
        if number == MOST_FILES:
            raise UserError(f"the braces of {spec} stand for more than {MOST_FILES:,} files")
        found |= dict.fromkeys(_files(spec, name, ending))
    for name in found:
        try:
            open_regular(name).close()
        except OSError as error:
            raise UserError(f"cannot read {name}: {(error.strerror or str(error)).lower()}") from error
    return [Path(name) for name in found]


def _files(spec: str, name: str, ending: str) -> list[str]:
    if os.path.isdir(name):  # noqa: PTH112
        inside = sorted(path for path in glob.glob(f"{glob.escape(name)}/*") if path.endswith(ending))  # noqa: PTH207
        if not inside:
            others = sorted({path.name.partition(".")[2] for path in Path(name).iterdir()} - {""})[:5]
            found = f"its files are .{', .'.join(others)}" if others else "it is empty"
            raise UserError(
                f"{spec}: the directory {name} has no {ending} files ({found}); give a pattern such as *{ending}"
            )
        return inside
    if not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    inside = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    if not inside:
        raise UserError(f"{spec}: no file matches {name}")
    return inside


def files_of_splits(spec: str, files: list[Path]) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """({split: its files}, notes), by the names of the files and of the folders in which they differ.

    Files whose names mean no split are all one training set, and so are the files of a single split of any name.

    Raises:
        UserError: if some names mean a split and others none, or several splits have no training set beside them.
    """
    common = os.path.commonpath([str(path.absolute().parent) for path in files])
    splits: dict[str | None, list[Path]] = {}
    for path in files:
        *folders, name = path.absolute().relative_to(common).parts
        words = [name.partition(".")[0], *reversed(folders)]
        splits.setdefault(next(filter(None, map(split_of, words)), None), []).append(path)
    unnamed = splits.pop(None, [])
    if unnamed and splits:
        named = next(iter(splits.values()))[0]
        raise UserError(
            f"{spec}: the name of {named.name} means a split, and that of {unnamed[0].name} none; name all or none of "
            "them by splits (train, validation, test)"
        )
    found = {split: paths for split, paths in splits.items() if split is not None}
    if not found:
        return {"train": unnamed}, ()
    if "train" in found:
        return found, ()
    if len(found) > 1:
        raise UserError(f"{spec} has files for {' and '.join(found)}, and none for training")
    ((split, paths),) = found.items()
    return {"train": paths}, (f"all files of {spec} are of the split {split} by their names; they are one set here",)


def place(files: list[Path]) -> str:
    """Where the files of a split are, in a few words."""
    return str(files[0]) if len(files) == 1 else f"{len(files):,} files from {files[0]} to {files[-1].name}"
