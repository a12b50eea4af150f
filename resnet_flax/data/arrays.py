"""Sources held in memory as one array: scikit-learn's digits, and the IDX files of MNIST and its family."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from parity.conversion.files import open_regular
from parity.errors import needs_extra
from resnet_flax.data.source import Sample, Source, SourceOptions
from resnet_flax.data.splits import Choice, choose
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from resnet_flax.data.transforms import EvaluationTransform

CACHE_BYTES = 1 << 30
CHUNK = 1 << 22  # bytes read at once
SMALL = 1 << 28  # bytes that a gzipped file of any size may unpack to
LARGEST_PACKING = 20  # times its size that a larger one may: images of MNIST's kind are packed to a fifth


def fits(source: Source, transform: EvaluationTransform | None) -> bool:
    """Whether all images of a source with a single size take at most 1 GiB after the transform."""
    image = source[0]["image"]
    return (image if transform is None else transform(image)).nbytes * len(source) <= CACHE_BYTES


class ArraySource(Source):
    """Images of one size in a single uint8 array (N, H, W, C), labels int64 (N,)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        spec: str,
        split: str,
        class_names: tuple[str, ...],
        origin: str = "",
        splits: tuple[str, ...] = ("train", "test"),
        notes: tuple[str, ...] = (),
    ):
        self.images, self._labels = images, labels
        self.spec, self.split, self.class_names, self.channels = spec, split, class_names, images.shape[-1]
        self.origin, self.splits, self._notes = origin, splits, notes
        self._transformed: dict[EvaluationTransform, np.ndarray] = {}

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        return list(self._notes)

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


def _chosen(
    choice: Choice, images: np.ndarray, labels: np.ndarray, *, spec: str, place: str, class_names: tuple[str, ...]
) -> ArraySource:
    """The images of a choice, out of all of the split that stores them."""
    if choice.part != "all":
        kept = choice.indices(labels)
        images, labels = images[kept], labels[kept]
    if not len(images):
        raise UserError(
            f"no images for split {choice.split!r} in {spec}: a class needs at least two to have one held out"
        )
    return ArraySource(
        images,
        labels.astype(np.int64),
        spec=spec,
        split=choice.split,
        class_names=class_names,
        origin=choice.origin(place),
        splits=choice.splits,
        notes=(choice.note,) if choice.note else (),
    )


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """The images uint8 (1797, 8, 8), grey levels 0 to 16, and labels int64 of scikit-learn's `load_digits`.

    They are read from its wheel (of version 1.9; a test compares them with `load_digits`): to import scikit-learn takes
    as long as JAX and Flax together.
    """
    with needs_extra("train", "the data set digits"):
        package = importlib.util.find_spec("sklearn")
        if package is None or package.origin is None:
            raise ModuleNotFoundError(name="sklearn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # in another version
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images.astype(np.uint8), digits.target
    rows = np.loadtxt(file, np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def open_digits(_: str, split: str, *, options: SourceOptions | None = None) -> ArraySource:
    """scikit-learn's `load_digits`: 1,797 real 8x8 grey images of 10 classes, shipped inside its wheel.

    Grey levels 0 to 16 become 0 to 255. It has no split of its own: a fifth of each class, 359 images, is held out.
    """
    levels, labels = read_digits()
    images = np.round(levels * (255 / 16)).astype(np.uint8)[..., None]
    choice = choose(split, ("train",), (options or SourceOptions()).split_by, name="digits")
    return _chosen(choice, images, labels, spec="digits", place="the digits", class_names=tuple("0123456789"))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped or not, as a uint8 array.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, the values (Y. LeCun, "The MNIST database").
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _parse_idx(path, gzip.GzipFile(fileobj=file) if packed else file, dimensions, size, packed=packed)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _read_at_most(file: BinaryIO | gzip.GzipFile, most: int) -> bytes:
    data = bytearray()
    while len(data) < most and (more := file.read(min(CHUNK, most - len(data)))):
        data += more
    return bytes(data)


def _parse_idx(path: Path, file: BinaryIO | gzip.GzipFile, dimensions: int, size: int, *, packed: bool) -> np.ndarray:
    """Reads what the header promises and not a byte more, once the file can hold as much."""
    start = file.read(4 + 4 * dimensions)
    if len(start) < 4 + 4 * dimensions or start[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions: it must start with "
            f"000008{dimensions:02x}, but starts with {start[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", start[4:])
    promised, most = math.prod(shape), max(SMALL, LARGEST_PACKING * size) if packed else size
    data = b"" if promised > most else _read_at_most(file, promised + 1)
    if promised > most or len(data) != promised:
        found = f"{len(data):,}" if promised <= most else f"{size:,} in all" + " before unpacking" * packed
        raise UserError(f"{path} must have {shape} bytes after its header, but has {found}; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


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


def open_idx(directory: str, split: str, *, options: SourceOptions | None = None) -> ArraySource:
    """A directory of IDX files, the format in which MNIST, Fashion-MNIST, KMNIST and EMNIST are published.

    The files have no class names: classes are "0", "1", ... up to the largest label of the training set.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"no directory {root}; idx:DIR needs one with the four IDX files of an MNIST-like set")
    choice = choose(split, PREFIXES, (options or SourceOptions()).split_by, name=str(root))
    images = _read(root, PREFIXES[choice.stored], "images", 3)
    labels = _read(root, PREFIXES[choice.stored], "labels", 1)
    if len(images) != len(labels) or not len(images):
        raise UserError(f"{root}: the {choice.stored} files have {len(images):,} images, but {len(labels):,} labels")
    train_labels = labels if choice.stored == "train" else _read(root, PREFIXES["train"], "labels", 1)
    if not len(train_labels):
        raise UserError(f"{root}: the train files have no labels")
    classes = int(train_labels.max()) + 1
    if labels.max() >= classes:
        raise UserError(
            f"{root}: the largest {choice.stored} label is {labels.max()}, the largest training label {classes - 1}"
        )
    names = tuple(str(label) for label in range(classes))
    place = f"the {choice.stored} files in {root}"
    return _chosen(choice, images[..., None], labels, spec=f"idx:{directory}", place=place, class_names=names)


PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
"""{split: how the names of its files start}."""
