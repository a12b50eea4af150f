"""webdataset's tar files as a source with random access, by an index of their headers; and written."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.conversion.files import open_regular
from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.encoded import EncodedSource, Records, label_array
from resnet_flax.data.folder import IMAGE_BYTES
from resnet_flax.data.patterns import files_of_splits, matching_files, place
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.tar_index import index_of
from resnet_flax.data.writing import STORED_AS, shards, stored_images, write_folder
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from resnet_flax.data.source import Source


class TarRecords(Records):
    """The images of some tar files."""

    def __init__(self, spec: str, files: Sequence[Path], options: SourceOptions):
        self._files = list(files)
        names: dict[int, str] = {}
        indices = [index_of(path, options.image, options.label) for path in files]
        self._sizes = [(index.size, index.modified) for index in indices]
        self._starts = np.cumsum([0, *(len(index.images) for index in indices)])
        self._images = np.array([place for index in indices for place in index.images], np.int64).reshape(-1, 2)
        for path, index in zip(files, indices, strict=True):
            for number, name in index.names.items():
                if names.setdefault(number, name) != name:
                    raise UserError(
                        f"the class names of {spec} differ: class {number} is {names[number]!r}, and {name!r} in {path}"
                    )
        self.names = names
        labels = [label for index in indices for label in index.labels]
        if labels and len(labels) < len(self):
            lacking = next(path for path, index in zip(files, indices, strict=True) if not index.labels)
            raise UserError(f"{lacking} has no labels (.cls, or label in .json), and others of {spec} have")
        if len({type(label) for label in labels}) > 1:
            raise UserError(f"the labels of {spec} are integers in some of its files and strings in others")
        self.labels = label_array(labels, spec) if labels else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _file(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def image(self, index: int) -> bytes:
        file, (offset, length) = self._file(index), self._images[index].tolist()
        path = self._files[file]
        if length > IMAGE_BYTES:
            raise CorruptImage(self.name(index), f"it has {length:,} bytes, more than {IMAGE_BYTES:,}")
        try:
            with open_regular(path) as tar:
                stat = os.fstat(tar.fileno())
                if (stat.st_size, stat.st_mtime_ns) != self._sizes[file]:
                    raise CorruptImage(self.name(index), "the file has changed since it was opened")
                return os.pread(tar.fileno(), length, offset)
        except OSError as error:
            raise CorruptImage(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        file, offset = self._file(index), int(self._images[index][0])
        return f"{index - int(self._starts[file])} of {self._files[file]} (at byte {offset:,})"


def open_wds(pattern: str, split: str, *, options: SourceOptions | None = None) -> EncodedSource:
    """`wds:GLOB`: tar files of samples with an image (.jpg, .png, ...) and a label, in .cls or as "label" in .json.

    Labels are integers or strings; the .json may have the name of the class beside an integer ("class"). The splits
    follow from the names of the files.
    """
    options, spec = options or SourceOptions(), f"wds:{pattern}"
    splits, notes = files_of_splits(spec, matching_files(spec, pattern, ".tar"))
    stored = {name: partial(TarRecords, spec, files, options) for name, files in splits.items()}
    places = {name: place(files) for name, files in splits.items()}
    return EncodedSource(spec, split, stored, places, options, notes)


def write_wds(
    name: str, data_dir: str | Path, splits: dict[str, Source], *, on_sample: Callable[[], None] = lambda: None
) -> Path:
    """Writes `splits` to the directory `name`, which appears when it is complete: train-000000.tar, ...

    A sample is an image, its class number in .cls, and both number and name of the class in .json. Images as in
    `writing.stored_images`; `data_dir` is unused.

    Raises:
        UserError: if the directory exists, an image is damaged, or the disk full.
    """
    target = Path(name).expanduser()
    write_folder(target, lambda folder: _write(folder, splits, on_sample))
    return target


def _write(folder: Path, splits: dict[str, Source], on_sample: Callable[[], None]) -> None:
    for split, source in splits.items():
        for number, indices in enumerate(shards(source)):
            with tarfile.open(folder / f"{STORED_AS[split]}-{number:06d}.tar", "w") as tar:
                for index, row in zip(indices, stored_images(source, indices, on_sample), strict=True):
                    label = {"label": row.label, "class": source.class_names[row.label]}
                    _add(tar, f"{index:08d}{row.ending}", row.image)
                    _add(tar, f"{index:08d}.cls", str(row.label).encode())
                    _add(tar, f"{index:08d}.json", json.dumps(label).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
