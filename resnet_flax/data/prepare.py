"""Writes any source as a TFDS data set in array_record: a folder of images becomes a few files with random access.

It uses TFDS's own writer, without TensorFlow: `tfds.core.SequentialWriter` and `DatasetIdentity`, which are not part of
TFDS's documented interface. Read from version 4.9.10; `test_tfds_interface` in the tests fails first if they change.
"""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from parity.errors import needs_extra
from resnet_flax.data.arrays import ArraySource
from resnet_flax.data.transforms import to_pil
from resnet_flax.errors import UserError

with needs_extra("train", "reading or writing TFDS data sets"):
    import tensorflow_datasets as tfds

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from resnet_flax.data.source import Source

VERSION = "1.0.0"
CHUNK = 256  # samples per call of the writer, which rewrites its metadata in each
PER_SHARD = 10_000


def disk_trouble(error: BaseException) -> str | None:
    """Why the disk refused a write; None for any other error. array_record raises RuntimeErrors with the text alone."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        return "the disk is full"
    return error.strerror or str(error) if isinstance(error, OSError) else None


def write_tfds(
    name: str,
    data_dir: str | Path,
    splits: dict[str, Source],
    *,
    on_sample: Callable[[], None] = lambda: None,
) -> Path:
    """Writes `splits`, such as {"train": ..., "test": ...}, to data_dir/name/1.0.0, in the order of the sources.

    JPEG and PNG files are stored byte for byte, everything else as PNG: the pixels read back are the same. Every image
    is decoded first, so a damaged one stops the writing. The set appears under its name once it is complete; nothing is
    left after a failure.

    Raises:
        UserError: if the set exists, its name is invalid or in TFDS's catalogue, an image is damaged, or the disk full.
    """
    target = Path(data_dir).expanduser() / name / VERSION
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"{name!r} cannot be the name of a TFDS data set; use lower-case letters, digits and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{name!r} is in TFDS's catalogue, and tfds:{name} would read that set; choose another name")
    if target.exists():
        raise UserError(f"{target} exists; remove it or choose another name")
    created = [folder for folder in target.parents if not folder.exists()]
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target.parent))
        _write(name, temporary, splits, on_sample)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        reason = disk_trouble(error)
        if reason:
            raise UserError(f"cannot write {target}: {reason}; no files were left there") from error
        raise
    return target


def _write(name: str, folder: Path, splits: dict[str, Source], on_sample: Callable[[], None]) -> None:
    first = next(iter(splits.values()))
    sizes = first.images.shape[1:3] if isinstance(first, ArraySource) else (None, None)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(*sizes, first.channels)),
            "label": tfds.features.ClassLabel(names=list(first.class_names)),
        }
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features,
        description=f"Written from {first.spec}.",
        supervised_keys=("image", "label"),
    )
    writer = tfds.core.SequentialWriter(info, PER_SHARD, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, source in splits.items():
        for start in range(0, len(source), CHUNK):
            samples = []
            for index in range(start, min(start + CHUNK, len(source))):
                sample = source[index]
                samples.append({"image": _encoded(source, index, sample["image"]), "label": sample["label"]})
                on_sample()
            writer.add_examples({split: samples})
    writer.close_all()


def _encoded(source: Source, index: int, image: np.ndarray) -> bytes:
    stored = source.encoded(index) or b""
    if stored.startswith((b"\xff\xd8", b"\x89PNG")):
        return stored
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()
