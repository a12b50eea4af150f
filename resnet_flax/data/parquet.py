"""Parquet files with an image column, as Hugging Face writes them: read with pyarrow alone, and written.

Parquet can be read by row groups only, hundreds of images at a time. So the images are copied once, as they are, into
Arrow files in the cache directory, which are mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.conversion.files import write_whole
from parity.errors import needs_extra
from resnet_flax.cache import cache_directory
from resnet_flax.data.columns import BYTES, CLASS_LABEL, IMAGE, INTEGER, STRING, Chosen, Column, choose_columns
from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.encoded import EncodedSource, Records, label_array
from resnet_flax.data.patterns import files_of_splits, matching_files, place
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.writing import STORED_AS, shards, stored_images, write_folder
from resnet_flax.errors import UserError

with needs_extra("hf", "reading or writing parquet and Hugging Face data sets"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from resnet_flax.data.source import Source

FORMAT = 1  # of the copies; another number makes new ones
PER_GROUP = 100  # rows of a row group that is written, as Hugging Face has it for images
LARGE = 2**30  # bytes; copying more is announced

logger = logging.getLogger("resnet_flax.data")


def features_of(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """{column: its type} as Hugging Face's `datasets` keeps it in the metadata of the schema; empty without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def class_names_of(feature: Mapping[str, Any]) -> dict[int, str]:
    """{label: name} of a feature in that metadata; empty if it is no class label with names."""
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return dict(enumerate(names)) if is_list and names else {}


def column_of(field: pa.Field, feature: Mapping[str, Any]) -> Column:
    """What a column of Arrow's type, with or without Hugging Face's, may be."""
    kind = field.type
    is_file = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if feature.get("_type") == "Image" or (is_file and _is_binary(kind.field("bytes").type)):
        return Column(field.name, IMAGE)
    if _is_binary(kind):
        return Column(field.name, BYTES)
    if feature.get("_type") == "ClassLabel" and pa.types.is_integer(kind):
        return Column(field.name, CLASS_LABEL)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return Column(field.name, INTEGER if pa.types.is_integer(kind) else STRING if is_string else str(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def labels_of(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A column of integers or strings as a numpy array.

    Raises:
        UserError: if a label is missing.
    """
    if column.null_count:
        raise UserError(f"{what} has no label in {column.null_count:,} of {len(column):,} rows")
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return label_array(column.to_pylist(), what)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot read {path} as parquet: {reason}") from error


class ParquetRecords(Records):
    """The images of some files."""

    def __init__(self, spec: str, files: Sequence[Path], options: SourceOptions):
        self.files, self.names, self.notes = list(files), {}, ()
        labels: list[np.ndarray] = []
        counts = []
        chosen: Chosen | None = None
        for path in files:
            schema = _read(path, pq.read_schema)
            features = features_of(schema)
            columns = [column_of(field, features.get(field.name, {})) for field in schema]
            here = choose_columns(spec, columns, options)
            names = class_names_of(features.get(here.label or "", {}))
            if chosen is not None and (here.image, here.label, names) != (chosen.image, chosen.label, self.names):
                raise UserError(f"{path} has other columns or class names than {files[0]}, which is of the same split")
            chosen, self.names, self.notes = here, names, here.notes
            if here.label is None:
                counts.append(_read(path, pq.read_metadata).num_rows)
                continue
            table = _read(path, partial(pq.read_table, columns=[here.label], partitioning=None))
            labels.append(labels_of(table.column(here.label), str(path)))
            counts.append(len(table))
        assert chosen is not None
        self.labels = np.concatenate(labels) if chosen.label is not None else None
        self._starts = np.cumsum([0, *counts])
        self._spec, self._column, self._copies = spec, chosen.image, []

    def prepare(self) -> None:
        self._copies = _copies(self.files, self._column)
        self.notes += (f"the images of {self._spec} are kept in {self._copies[0].parent} for random access",)

    @cached_property
    def _images(self) -> list[pa.ChunkedArray]:
        """Of each file, mapped into memory."""
        try:
            return [pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0) for path in self._copies]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the images in {self._copies[0].parent} cannot be read ({error}); remove them") from error

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the file, row in it)."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])

    def image(self, index: int) -> bytes:
        file, row = self._place(index)
        value = self._images[file][row].as_py()
        if value is None:
            raise CorruptImage(self.name(index), "the file has no bytes for it")
        return value

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f"{row} of {self.files[file]}"


def _copies(files: Sequence[Path], column: str) -> list[Path]:
    """Arrow files with the images of each parquet file, in the cache directory; made where they are missing."""
    copies, missing = [], []
    for path in files:
        stat = path.stat()
        key = repr((FORMAT, str(path.absolute()), stat.st_size, stat.st_mtime_ns, column))
        copies.append(cache_directory("parquet") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow")
        missing += [] if copies[-1].exists() else [(path, copies[-1], stat.st_size)]
    if (size := sum(size for _, _, size in missing)) > LARGE:
        logger.warning(
            "copying the images of %d parquet files (%.1f GB) once to %s", len(missing), size / 1e9, copies[0].parent
        )
    for path, copy, _ in missing:
        write_whole(copy, partial(_copy, path, column))
    return copies


def _copy(path: Path, column: str, target: Path) -> None:
    """Writes the encoded images of a parquet file as one Arrow column."""
    schema = pa.schema([pa.field("image", pa.large_binary())])
    with pq.ParquetFile(path) as file, pa.ipc.new_file(str(target), schema) as writer:
        for batch in file.iter_batches(PER_GROUP, columns=[column]):
            array = batch.column(0)
            if pa.types.is_struct(array.type):
                array = array.flatten()[array.type.get_field_index("bytes")]
            writer.write_batch(pa.record_batch([array.cast(pa.large_binary())], schema))


def open_parquet(pattern: str, split: str, *, options: SourceOptions | None = None) -> EncodedSource:
    """`parquet:GLOB`: files with a column of images (bytes, or Hugging Face's struct of bytes and path) and of labels.

    Labels are class labels with names in Hugging Face's metadata, integers, or strings. The splits follow from the
    names of the files.
    """
    options, spec = options or SourceOptions(), f"parquet:{pattern}"
    splits, notes = files_of_splits(spec, matching_files(spec, pattern, ".parquet"))
    stored = {name: partial(ParquetRecords, spec, files, options) for name, files in splits.items()}
    places = {name: place(files) for name, files in splits.items()}
    return EncodedSource(spec, split, stored, places, options, notes)


def schema_of(class_names: Sequence[str]) -> pa.Schema:
    """The columns of images and class labels as Hugging Face has them, with its metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("image", image), pa.field("label", pa.int64())]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def record_batches(
    source: Source, indices: range, schema: pa.Schema, on_sample: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    """Images and labels in batches of `PER_GROUP`."""
    for start in range(indices.start, indices.stop, PER_GROUP):
        part = range(start, min(start + PER_GROUP, indices.stop))
        rows = list(stored_images(source, part, on_sample))
        images = [
            {"bytes": row.image, "path": f"{index:08d}{row.ending}"} for index, row in zip(part, rows, strict=True)
        ]
        yield pa.record_batch([pa.array(images, schema.field(0).type), pa.array([row.label for row in rows])], schema)


def write_parquet(
    name: str, data_dir: str | Path, splits: dict[str, Source], *, on_sample: Callable[[], None] = lambda: None
) -> Path:
    """Writes `splits` to the directory `name`, which appears when it is complete: train-00000-of-00004.parquet, ...

    `datasets.load_dataset` and the hub read the same files. Images as in `writing.stored_images`; `data_dir` is unused.

    Raises:
        UserError: if the directory exists, an image is damaged, or the disk full.
    """
    target = Path(name).expanduser()
    write_folder(target, lambda folder: _write(folder, splits, on_sample))
    return target


def _write(folder: Path, splits: dict[str, Source], on_sample: Callable[[], None]) -> None:
    for split, source in splits.items():
        schema, parts = schema_of(source.class_names), shards(source)
        for number, indices in enumerate(parts):
            path = folder / f"{STORED_AS[split]}-{number:05d}-of-{len(parts):05d}.parquet"
            with pq.ParquetWriter(path, schema) as writer:
                for batch in record_batches(source, indices, schema, on_sample):
                    writer.write_batch(batch, row_group_size=PER_GROUP)
