"""Sources held in memory as one array: scikit-learn's digits, and the IDX files of MNIST and its family."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.errors import needs_extra
from resnet_flax.data.source import Sample, Source, split_names, stratified_split
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from resnet_flax.data.transforms import EvaluationTransform

CACHE_BYTES = 1 << 30


def fits(source: Source, transform: EvaluationTransform | None) -> bool:
    """Whether all images of a source with a single size take at most 1 GiB after the transform."""
    image = source[0]["image"]
    return (image if transform is None else transform(image)).nbytes * len(source) <= CACHE_BYTES


class ArraySource(Source):
    """Images of one size in a single uint8 array (N, H, W, C), labels int64 (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, spec: str, split: str, class_names: tuple[str, ...]):
        self.images, self._labels = images, labels
        self.spec, self.split, self.class_names, self.channels = spec, split, class_names, images.shape[-1]
        self._transformed: dict[EvaluationTransform, np.ndarray] = {}

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return {"image": self.images[index], "label": int(self._labels[index])}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_transformed": {}}

    def transformed(self, transform: EvaluationTransform | None) -> np.ndarray | None:
        if transform is None:
            return self.images
        if transform not in self._transformed:
            if not fits(self, transform):
                return None
            first = transform(self.images[0])
            unchanged = first.shape == self.images[0].shape and transform.keeps(first.shape)
            self._transformed[transform] = (
                self.images if unchanged else np.stack([transform(image) for image in self.images])
            )
        return self._transformed[transform]


def open_digits(_: str, split: str) -> ArraySource:
    """scikit-learn's `load_digits`: 1,797 real 8x8 grey images of 10 classes, shipped inside its wheel.

    Grey levels 0 to 16 become 0 to 255. It has no split of its own: `stratified_split` puts a fifth of each class, 359
    images, in the test set.
    """
    with needs_extra("train", "the data set digits"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    chosen = stratified_split(digits.target, split)
    return ArraySource(
        images[chosen],
        digits.target[chosen].astype(np.int64),
        spec="digits",
        split=split,
        class_names=tuple(str(name) for name in digits.target_names),
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped or not, as a uint8 array.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, the values (Y. LeCun, "The MNIST database").
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions: it must start with "
            f"000008{dimensions:02x}, but starts with {data[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != int(np.prod(shape, dtype=np.uint64)):
        raise UserError(
            f"{path} must have {shape} bytes after its header, but has {len(data) - header:,}; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read(directory: Path, prefixes: tuple[str, ...], kind: str, dimensions: int) -> np.ndarray:
    """Reads the only file named like train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte or emnist-test-images."""
    files = sorted(
        path
        for prefix in prefixes
        for path in directory.glob(f"*{prefix}-{kind}*")
        if path.name.removesuffix(".gz").endswith("ubyte")
    )
    plain = {path.name.removesuffix(".gz"): path for path in reversed(files)}  # x and x.gz count as one file
    if len(plain) != 1:
        raise UserError(
            f"{directory} must contain one file named like {prefixes[0]}-{kind}-idx{dimensions}-ubyte (or .gz); "
            f"it has {', '.join(plain) or 'none'}"
        )
    return read_idx(next(iter(plain.values())), dimensions)


def open_idx(directory: str, split: str) -> ArraySource:
    """A directory of IDX files, the format in which MNIST, Fashion-MNIST, KMNIST and EMNIST are published.

    The files have no class names: classes are "0", "1", ... up to the largest label of the training set.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"no directory {root}; idx:DIR needs one with the four IDX files of an MNIST-like set")
    training = split_names(split)[0] == "train"
    prefixes = ("train",) if training else ("t10k", "test")
    images = _read(root, prefixes, "images", 3)
    labels = _read(root, prefixes, "labels", 1)
    if len(images) != len(labels) or not len(images):
        raise UserError(f"{root}: the {split} files have {len(images):,} images, but {len(labels):,} labels")
    train_labels = labels if training else _read(root, ("train",), "labels", 1)
    classes = int(train_labels.max()) + 1
    if labels.max() >= classes:
        raise UserError(
            f"{root}: the largest {split} label is {labels.max()}, the largest training label {classes - 1}"
        )
    return ArraySource(
        images[..., None],
        labels.astype(np.int64),
        spec=f"idx:{directory}",
        split=split,
        class_names=tuple(str(label) for label in range(classes)),
    )
