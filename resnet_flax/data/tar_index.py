"""Where the images of a webdataset's tar file are in it, so that any of them can be read; kept in a file beside it.

A sample is the files of one name up to its first dot: `0007.jpg`, `0007.cls` and `0007.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from parity.conversion.files import open_regular, read_regular, write_text
from parity.errors import ParityError
from resnet_flax.cache import cache_directory
from resnet_flax.data.columns import LABEL_NAMES
from resnet_flax.data.folder_index import NO_DATA
from resnet_flax.data.layout import EXTENSIONS
from resnet_flax.errors import UserError

FORMAT = 1  # of the index; another number makes new ones
LARGEST_LABEL = 2**20  # bytes of a .cls or .json
LARGEST_INDEX = 2**30  # bytes
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
CLASS_NAMES = ("class", "class_name", "label_name")
"""The keys of a .json that are the name of an integer label."""

Label = int | str


@dataclass(frozen=True)
class Index:
    """The images of a tar file, in its order.

    Attributes:
        size, modified: of the file, in bytes and nanoseconds.
        images: (offset, bytes) of each.
        labels: of each, all integers or all strings; empty if the file has none.
        names: {label: name of the class} of integer labels, as far as the file has them.
    """

    size: int
    modified: int
    images: list[tuple[int, int]]
    labels: list[Label]
    names: dict[int, str]


def index_of(path: Path, image: str | None, label: str | None) -> Index:
    """The index of a tar file: the kept one if the file has not changed since, or a new one.

    Args:
        image: the ending of the images, such as "left.jpg"; None if a sample has one.
        label: the ending of the labels, or the key of a .json; None for .cls, or "label" in .json.

    Raises:
        UserError: if the file is no whole, uncompressed tar, or cannot be indexed.
    """
    stat = path.stat()
    for kept in (keep := _places(path, image, label)):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            index = _from_json(json.loads(read_regular(kept, LARGEST_INDEX)))
            if (index.size, index.modified) == (stat.st_size, stat.st_mtime_ns):
                return index
    index = read_index(path, image, label)
    for place in keep:
        with contextlib.suppress(ParityError, OSError):
            if os.access(place.parent, os.W_OK):
                write_text(place, _to_json(index))
                break
    return index


def _places(path: Path, image: str | None, label: str | None) -> list[Path]:
    """Where the index may be: beside the file, or else in the cache directory."""
    options = hashlib.sha256(repr((FORMAT, image, label)).encode()).hexdigest()[:8]
    whole = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    places = [path.with_name(f".{path.name}.{options}.index")]
    with contextlib.suppress(OSError):  # a cache directory that cannot be made
        places.append(cache_directory("wds") / f"{whole}.{options}.index")
    return places


def _to_json(index: Index) -> str:
    names = {str(number): name for number, name in index.names.items()}
    rows = {"images": index.images, "labels": index.labels, "names": names}
    return json.dumps({"size": index.size, "modified": index.modified, **rows})


def _from_json(content: Any) -> Index:
    """Raises ValueError, TypeError or KeyError for anything that `_to_json` does not write."""
    size, modified = content["size"], content["modified"]
    images = [(offset, length) for offset, length in content["images"]]
    labels, names = content["labels"], {int(number): name for number, name in content["names"].items()}
    numbers = [size, modified, *(number for pair in images for number in pair)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError("a number")
    if any(offset + length > size for offset, length in images) or len(labels) not in (0, len(images)):
        raise ValueError("an image outside of the file, or one without a label")
    if {type(x) for x in labels} not in (set(), {int}, {str}) or {type(x) for x in names.values()} - {str}:
        raise TypeError("a label")
    return Index(size, modified, images, labels, names)


def read_index(path: Path, image: str | None, label: str | None) -> Index:
    """Reads the headers of a tar file, and the small files in it that are labels; see `index_of`."""
    try:
        with open_regular(path) as raw:
            start = raw.read(2) or b""
            if kind := PACKED.get(start):
                raise UserError(f"{path} is compressed ({kind}), which has no random access; unpack it to a .tar")
            raw.seek(0)
            stat = os.fstat(raw.fileno())
            samples = _samples(path, raw, stat.st_size)
            rows = [_row(path, raw, key, files, image, label) for key, files in samples.items()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    found = [row for row in rows if row is not None]
    if not found:
        endings = sorted({ending for files in samples.values() for ending in files})[:10]
        raise UserError(f"{path} has no images; its samples have {', '.join(endings) or 'no files'}")
    for (key, files), row in zip(samples.items(), rows, strict=True):
        if row is None and (label or "cls").lower() in files:
            raise UserError(f"{key} in {path} has a label and no image; its files are {', '.join(sorted(files))}")
    labels = [row.label for row in found if row.label is not None]
    if labels and len(labels) < len(found):
        lacking = next(row.key for row in found if row.label is None)
        raise UserError(f"{path} has {len(found):,} images and {len(labels):,} labels: {lacking} has none")
    if len({type(value) for value in labels}) > 1:
        raise UserError(f"the labels in {path} are integers and strings; one kind is needed")
    names: dict[int, str] = {}
    for row in found:
        if row.name is not None and isinstance(row.label, int) and names.setdefault(row.label, row.name) != row.name:
            raise UserError(f"the class {row.label} is {names[row.label]!r} and {row.name!r} in {path}")
    return Index(stat.st_size, stat.st_mtime_ns, [row.place for row in found], labels, names)


def _samples(path: Path, raw: BinaryIO, size: int) -> dict[str, dict[str, tuple[int, int]]]:
    """{name before the first dot: {ending: (offset, bytes)}}."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(fileobj=raw, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # ty: ignore[missing-attribute] - it would keep all of them
                folder, _, name = member.name.rpartition("/")
                if member.isdir() or name.startswith((".", "__")) or folder.split("/")[0] in NO_DATA:
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(f"{member.name} in {path} is a link or a special file; only files are read")
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} is cut short: {member.name} ends beyond it; copy it again")
                stem, _, ending = name.partition(".")
                files = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if ending.lower() in files:
                    raise UserError(f"{path} has {member.name} twice")
                files[ending.lower()] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a tar file, or is damaged ({error}); copy it again") from error
    _require_end(path, raw, end)
    return samples


def _require_end(path: Path, raw: BinaryIO, end: int) -> None:
    """Raises UserError unless a block of zeros comes after the last member, as in whole tar files, and nothing else."""
    raw.seek(end)
    zeros = 0
    while block := raw.read(1 << 20):
        leading = len(block) - len(block.lstrip(b"\0"))
        zeros += leading
        if leading < len(block):
            break
    if zeros < tarfile.BLOCKSIZE:
        raise UserError(f"{path} is cut short: it lacks the blocks of zeros at the end of a tar file; copy it again")
    if block:
        raise UserError(f"{path} has more after its end, as if tar files were joined; write it as one")


@dataclass(frozen=True)
class _Row:
    key: str
    place: tuple[int, int]
    label: Label | None
    name: str | None


def _row(
    path: Path, raw: BinaryIO, key: str, files: dict[str, tuple[int, int]], image: str | None, label: str | None
) -> _Row | None:
    """A sample; None if it has no image."""
    images = [ending for ending in files if f".{ending.rpartition('.')[2]}" in EXTENSIONS]
    if image is not None:
        images = [image.lower()] if image.lower() in files else []
    if not images:
        if packed := next((ending for ending in files if ending.endswith((".gz", ".bz2", ".xz", ".zst"))), None):
            raise UserError(f"{key}.{packed} in {path} is compressed; store images as they are")
        return None
    if len(images) > 1:
        raise UserError(f"{key} in {path} has several images, {', '.join(images)}; choose an ending with --image")
    value, name = _label(path, raw, key, files, label)
    return _Row(key, files[images[0]], value, name)


def _label(
    path: Path, raw: BinaryIO, key: str, files: dict[str, tuple[int, int]], label: str | None
) -> tuple[Label | None, str | None]:
    """(label, name of the class), each None if there is none."""
    content = _json(path, key, _content(path, raw, key, files, "json")) if "json" in files else {}
    ending = (label or "cls").lower()
    value, name = None, None
    if ending in files and ending != "json":
        try:
            value = _label_of(_content(path, raw, key, files, ending).decode().strip())
        except UnicodeDecodeError as error:
            raise UserError(f"{key}.{ending} in {path} is not text in UTF-8") from error
    keys = [label] if label is not None else ["label"] if "label" in content else _called(content)
    if value is None and len(keys) > 1:
        raise UserError(f"{key}.json in {path} has several keys that may be the label, {', '.join(keys)}; give --label")
    for at in (at for at in keys if at in content):
        stored = content[at]
        if type(stored) not in (int, str):
            raise UserError(f"the label of {key}.json in {path} is {str(stored)[:80]!r}, not an integer or a string")
        is_other = type(stored) is type(value) and stored != value  # .cls may be the number and .json the name
        if is_other and label is None and at == "label":
            raise UserError(f"{key} in {path} has two labels: {value!r} in .cls and {stored!r} in .json; give --label")
        value = stored if value is None else value
    if type(value) is int:
        names = [content[at] for at in CLASS_NAMES if isinstance(content.get(at), str)]
        name = names[0] if names else None
    return value, name


def _called(content: dict[str, Any]) -> list[str]:
    return [at for at in content if at.lower() in LABEL_NAMES]


def _label_of(text: str) -> Label:
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10 else text


def _content(path: Path, raw: BinaryIO, key: str, files: dict[str, tuple[int, int]], ending: str) -> bytes:
    offset, length = files[ending]
    if length > LARGEST_LABEL:
        raise UserError(f"{key}.{ending} in {path} has {length:,} bytes, more than {LARGEST_LABEL:,}")
    raw.seek(offset)
    return raw.read(length) or b""


def _json(path: Path, key: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}.json in {path} is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}
