"""Writes any source as a TFDS data set in array_record: a folder of images becomes a few files with random access.

It uses TFDS's own writer, without TensorFlow: `tfds.core.SequentialWriter` and `DatasetIdentity`, which are not part of
TFDS's documented interface. Read from version 4.9.10; `test_tfds_interface` in the tests fails first if they change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from parity.errors import needs_extra
from resnet_flax.data.arrays import ArraySource
from resnet_flax.data.writing import PER_SHARD, stored_images, write_folder
from resnet_flax.errors import UserError

with needs_extra("train", "reading or writing TFDS data sets"):
    import tensorflow_datasets as tfds

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_flax.data.source import Source

VERSION = "1.0.0"
CHUNK = 256  # samples per call of the writer, which rewrites its metadata in each


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
    write_folder(target, lambda folder: _write(name, folder, splits, on_sample))
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
            images = stored_images(source, range(start, min(start + CHUNK, len(source))), on_sample)
            writer.add_examples({split: [{"image": image.image, "label": image.label} for image in images]})
    writer.close_all()
