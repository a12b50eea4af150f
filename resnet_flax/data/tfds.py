"""TensorFlow Datasets as random-access sources: read without TensorFlow, prepared with it.

`tfds.core.constants.DATA_DIR` and the wording of TFDS's errors are not part of its documented interface. Read from
version 4.9.10; `test_tfds_interface` and `test_unknown_and_unprepared_tfds_sets` fail first if they change.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.errors import needs_extra
from resnet_flax.data.arrays import ArraySource, fits
from resnet_flax.data.decoding import decode_grey, decode_rgb
from resnet_flax.data.prepare import disk_trouble
from resnet_flax.data.source import EVALUATION_SPLITS, Sample, Source, split_names, stratified_split
from resnet_flax.errors import UserError

with needs_extra("train", "reading or writing TFDS data sets"):
    import tensorflow_datasets as tfds

if TYPE_CHECKING:
    from resnet_flax.data.transforms import EvaluationTransform


def find_builder(name: str, data_dir: str | Path | None) -> Any:
    """The TFDS builder of NAME[/CONFIG][:VERSION], from its files in `data_dir` or TFDS's catalogue.

    Raises:
        UserError: if there is no such data set (with the nearest names), configuration or version.
    """
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        folder = Path(data_dir).expanduser() if data_dir else Path(tfds.core.constants.DATA_DIR)
        prepared = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        known = tfds.list_builders(with_community_datasets=False) + prepared
        nearest = difflib.get_close_matches(name.partition(":")[0].partition("/")[0], known, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise UserError(f"no TFDS data set {name!r} in the catalogue or in {folder}{hint}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = (
            str(error).rpartition('}": ')[2].strip().splitlines()[0]
        )  # after the arguments, which TFDS prints first
        raise UserError(f"cannot open TFDS data set {name!r}: {reason}") from error


def prepare(builder: Any) -> None:
    """Downloads a data set and writes it as array_record, with TFDS's progress bars; needs TensorFlow.

    TFDS writes to a temporary directory and renames it at the end: a failure leaves no incomplete set.

    Raises:
        UserError: if TensorFlow is not installed, or preparing fails.
    """
    name, root = builder.info.full_name, builder.data_dir
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"TFDS data set {name} is not prepared in {root}, and preparing it needs TensorFlow: "
            "pip install 'resnet-flax[prepare]', or prepare it elsewhere and pass its directory as --data-dir"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads, checksums, manual steps, disks: TFDS raises many types
        reason = disk_trouble(error) or (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"preparing TFDS data set {name} in {root} failed: {reason}") from error


class TfdsSource(Source):
    """`tfds:NAME[/CONFIG][:VERSION]`: any TFDS set with an image and a class label, stored as array_record.

    Prepared on first use if TensorFlow is installed, unless `may_prepare` is False. A set without a labelled test or
    validation split is split by `stratified_split`. Images keep their stored size; grey ones stay (H, W, 1).
    """

    def __init__(
        self, name: str, split: str = "train", *, data_dir: str | Path | None = None, may_prepare: bool = True
    ):
        self.spec, self.split = f"tfds:{name}", split
        builder = find_builder(name, data_dir)
        if not builder.info.splits:
            if not may_prepare:
                raise UserError(
                    f"TFDS data set {builder.info.full_name} is not prepared in {builder.data_dir}; "
                    f"`python -m resnet_flax data show {self.spec}` prepares it"
                )
            prepare(builder)
        self._image, self._label = self._keys(builder.info)
        features = builder.info.features
        self.class_names = tuple(features[self._label].names or map(str, range(features[self._label].num_classes)))
        self.channels = 1 if features[self._image].shape[-1] == 1 else 3
        self._of_one_size = None not in features[self._image].shape
        self._array: ArraySource | None = None
        self._records, self._kept = self._choose(builder, split)

    def _keys(self, info: Any) -> tuple[str, str]:
        def of_type(kind: type) -> list[str]:
            return [name for name, feature in info.features.items() if isinstance(feature, kind)]

        images, labels = of_type(tfds.features.Image), of_type(tfds.features.ClassLabel)
        pair = info.supervised_keys
        if pair and len(pair) == 2 and pair[0] in images and pair[1] in labels:
            return pair
        if len(images) == len(labels) == 1:
            return images[0], labels[0]
        raise UserError(f"{self.spec} must have an image and a class label; it has {', '.join(info.features)}")

    def _choose(self, builder: Any, split: str) -> tuple[Any, np.ndarray | None]:
        """The records of a split, and the indices to use of them if the set has no test split and has to be split."""
        stored = builder.info.splits

        def labelled(name: str) -> bool:  # imagenet2012's test split, for one, has the label -1 throughout
            return name in stored and int(self._open(builder, name)[0][self._label]) >= 0

        if "train" not in stored:
            raise UserError(f"{self.spec} has no split train; it has {', '.join(stored)}")
        names = EVALUATION_SPLITS if split == "train" else split_names(split)
        evaluation = next((name for name in names if labelled(name)), None)
        if evaluation is not None:
            return self._open(builder, "train" if split == "train" else evaluation), None
        records = self._open(builder, "train")
        return records, stratified_split([int(records[i][self._label]) for i in range(len(records))], split)

    @staticmethod
    def _open(builder: Any, split: str) -> Any:
        # We decode the image ourselves, as for a folder, and use no other feature but the label.
        decoders = dict.fromkeys(builder.info.features, tfds.decode.SkipDecoding())
        try:
            return builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f"{builder.info.full_name} in {builder.data_dir} is stored as {builder.info.file_format}, which "
                "has no random access; prepare it as array_record, in another --data-dir"
            ) from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}

    @property
    def labels(self) -> np.ndarray:
        if self._array is not None:
            return self._array.labels
        return np.array([int(self._record(i)[self._label]) for i in range(len(self))], np.int64)

    def __len__(self) -> int:
        return len(self._records) if self._kept is None else len(self._kept)

    def _record(self, index: int) -> dict[str, Any]:
        return self._records[index if self._kept is None else int(self._kept[index])]

    def encoded(self, index: int) -> bytes:
        """The stored image: a complete JPEG or PNG file."""
        return self._record(index)[self._image]

    def __getitem__(self, index: int) -> Sample:
        record = self._record(index)
        decode = decode_grey if self.channels == 1 else decode_rgb
        image = decode(record[self._image], f"{index} of {self.spec} {self.split}")
        return {"image": image, "label": int(record[self._label])}

    def transformed(self, transform: EvaluationTransform | None) -> np.ndarray | None:
        # At CIFAR's size, reading a record and decoding its PNG costs a hundred times as much as indexing an array.
        if self._array is None and self._of_one_size:
            try:
                self._array = self._decode_all() if fits(self, None) and fits(self, transform) else None
            except ValueError:  # an image is damaged or has another size: reading one by one names it
                self._of_one_size = False
        return None if self._array is None else self._array.transformed(transform)

    def _decode_all(self) -> ArraySource:
        images = np.empty((len(self), *self[0]["image"].shape), np.uint8)
        labels = np.empty(len(self), np.int64)
        for index in range(len(self)):
            sample = self[index]
            images[index], labels[index] = sample["image"], sample["label"]
        return ArraySource(images, labels, spec=self.spec, split=self.split, class_names=self.class_names)
