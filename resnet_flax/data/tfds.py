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
from resnet_flax.data.source import Sample, Source, SourceOptions
from resnet_flax.data.splits import choose, named_splits
from resnet_flax.data.writing import disk_trouble
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


def _kind(feature: Any) -> str:
    if isinstance(feature, tfds.features.ClassLabel):
        return "class label"
    return f"{type(feature).__name__} {feature.np_dtype}" if _is_integer(feature) else type(feature).__name__


def _is_integer(feature: Any) -> bool:
    """Whether a feature is one integer per image, other than a class label."""
    return (
        isinstance(feature, tfds.features.Tensor)
        and not isinstance(feature, tfds.features.ClassLabel)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.integer)
    )


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

    Prepared on first use if TensorFlow is installed, unless `may_prepare` is False. Images keep their stored size; grey
    ones stay (H, W, 1). A label that is a plain integer has the classes "0", "1", ... up to the largest in training.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        *,
        data_dir: str | Path | None = None,
        may_prepare: bool = True,
        options: SourceOptions | None = None,
    ):
        options = options or SourceOptions()
        self.spec, self._decoding = f"tfds:{name}", options.decoding
        builder = find_builder(name, data_dir)
        if not builder.info.splits:
            if not may_prepare:
                raise UserError(
                    f"TFDS data set {builder.info.full_name} is not prepared in {builder.data_dir}; "
                    f"`python -m resnet_flax data show {self.spec}` prepares it"
                )
            prepare(builder)
        self._image, self._label = self._keys(builder.info, options)
        features = builder.info.features
        self.channels = 1 if features[self._image].shape[-1] == 1 else 3
        self._of_one_size = None not in features[self._image].shape
        self._array: ArraySource | None = None
        stored = self._stored(builder)
        choice = choose(
            split,
            stored,
            options.split_by,
            name=self.spec,
            # imagenet2012's test split, for one, has the label -1 throughout
            usable=lambda split: int(self._open(builder, stored[split])[0][self._label]) >= 0,
        )
        self._records = self._open(builder, stored[choice.stored])
        self._kept = None if choice.part == "all" else choice.indices(self._labels_of(self._records))
        if isinstance(features[self._label], tfds.features.ClassLabel):
            label = features[self._label]
            self.class_names = tuple(label.names or map(str, range(label.num_classes)))
        else:
            training = self._labels_of(self._open(builder, stored["train"]))
            if training.min() < 0:
                raise UserError(
                    f"{self.spec}: the smallest {self._label} is {training.min()}; class numbers start at 0"
                )
            self.class_names = tuple(map(str, range(int(training.max()) + 1)))
        ignored = sorted(set(builder.info.splits) - set(stored.values()))
        self._notes = [f"ignored splits of {self.spec}: {', '.join(ignored)}"] if ignored else []
        self._notes += [choice.note] if choice.note else []
        self.split, self.splits = choice.split, choice.splits
        self.origin = choice.origin(f"split {stored[choice.stored]} of {self.spec} in {builder.data_dir}")
        if not len(self):
            raise UserError(f"no images for split {split!r} in {self.spec}")

    def _keys(self, info: Any, options: SourceOptions) -> tuple[str, str]:
        """The features that are the image and the label.

        Raises:
            UserError: if they cannot be told, or are of another kind.
        """
        features = dict(info.features.items())
        found = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        integers = [name for name, feature in features.items() if _is_integer(feature)]
        pair: tuple = info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else ("", "")
        if not images:
            raise UserError(f"{self.spec} has no image; its features are {found}")
        if pair[0] not in images and len(images) > 1:
            raise UserError(f"{self.spec} has several images and names none as its input; its features are {found}")
        image: str = pair[0] if pair[0] in images else images[0]
        if features[image].np_dtype != np.uint8 and not options.decoding.scale_16_bit:
            raise UserError(
                f"the images of {self.spec} are {features[image].np_dtype}, not uint8; --scale-16-bit reads grey "
                "ones of 16 bits as 8"
            )
        if options.label is not None:
            if options.label not in (*labels, *integers):
                raise UserError(
                    f"--label {options.label} is not a class label or integer of {self.spec}, which has {found}"
                )
            return image, options.label
        if pair[1] in labels:
            return image, pair[1]
        if len(labels) == 1:
            return image, labels[0]
        if labels:
            raise UserError(
                f"{self.spec} has several class labels, {', '.join(labels)}, and names none as its target; "
                "choose one with --label"
            )
        way_on = f"--label {integers[0]} takes the integers as classes" if integers else "it needs one per image"
        raise UserError(f"{self.spec} has no feature of type ClassLabel; it has {found}; {way_on}")

    def _stored(self, builder: Any) -> dict[str, str]:
        """{split: its name in TFDS}."""
        names = list(builder.info.splits)
        chosen = named_splits(self.spec, names)
        if "train" not in chosen:
            raise UserError(f"{self.spec} has no split train; it has {', '.join(names)}")
        return chosen

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
        every = self._labels_of(self._records)
        return every if self._kept is None else every[self._kept]

    def _labels_of(self, records: Any) -> np.ndarray:
        return np.array([int(records[i][self._label]) for i in range(len(records))], np.int64)

    def notes(self) -> list[str]:
        return self._notes

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
        image = decode(record[self._image], f"{index} of {self.spec} {self.split}", self._decoding)
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
