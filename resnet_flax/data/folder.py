"""Images in one folder per class, in torchvision's ImageFolder order."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from resnet_flax.data.decoding import CorruptImage, decode_rgb
from resnet_flax.data.source import Sample, Source, split_names, stratified_split
from resnet_flax.errors import UserError

# What torchvision's ImageFolder takes for an image; other files are passed over.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_folders(directory: Path) -> tuple[str, ...]:
    """Names of the folders in `directory`, sorted as strings ("10" before "2"): their order numbers the classes.

    Hidden ones, such as Jupyter's .ipynb_checkpoints, are left out.
    """
    return tuple(sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != "."))


def visible_files(directory: Path) -> list[str]:
    """Paths of all files below `directory`, in torchvision's order, without hidden ones, such as macOS's ._1.jpg."""
    return [
        os.path.join(parent, name)  # noqa: PTH118 - a million Path objects are slow and large
        for parent, _, names in sorted(os.walk(directory, followlinks=True))
        if f"{os.sep}." not in parent[len(str(directory)) :]
        for name in sorted(names)
        if name[0] != "."
    ]


def image_files(directory: Path) -> list[str]:
    """Those of the visible files that torchvision takes for images."""
    return [path for path in visible_files(directory) if path.lower().endswith(EXTENSIONS)]


class FolderSource(Source):
    """`folder:DIR`: DIR holds train/ and val/ (or validation/, valid/, test/), each with a folder per class.

    A DIR that holds the class folders themselves is cut by `stratified_split`, a fifth of each class to the test set.
    The classes are the training set's, also for the other split. Images are RGB of any size, decoded when asked for.
    """

    channels = 3

    def __init__(self, directory: str, split: str = "train"):
        self.spec, self.split = f"folder:{directory}", split
        root = Path(directory).expanduser()
        if not root.is_dir():
            raise UserError(
                f"no directory {root}; folder:DIR wants a folder of images per class, or train/ and val/ of such"
            )
        train = root / "train" if (root / "train").is_dir() else root
        chosen = train
        if train != root:
            # ImageNet's test images, and Kaggle's, lie in no class folders: val/ is then the one to evaluate on.
            folders = [root / name for name in split_names(split)]
            found = [folder for folder in folders if folder == train or (folder.is_dir() and class_folders(folder))]
            if not found:
                names = "val/, validation/, valid/ or test/"
                raise UserError(f"{root} has train/ but no {names} with class folders to evaluate on")
            chosen = found[0]
        self.class_names = class_folders(train)
        if not self.class_names:
            raise UserError(f"no class folders in {train}; expected one folder of images per class")
        self._directory = chosen
        self.paths, self._labels = self._list(chosen, may_lack_classes=chosen != train)
        if train == root:
            kept = stratified_split(self._labels, split)
            self.paths, self._labels = [self.paths[i] for i in kept], self._labels[kept]
        if not self.paths:  # a class that is there and empty was refused above
            raise UserError(
                f"no images for split {split!r} in {root}: no class has two, one of which could be held back"
            )

    def _list(self, directory: Path, *, may_lack_classes: bool) -> tuple[list[str], np.ndarray]:
        unknown = sorted(set(class_folders(directory)) - set(self.class_names))
        if unknown:
            raise UserError(f"{directory} has classes that the training set lacks: {', '.join(unknown[:10])}")
        files = [image_files(directory / name) for name in self.class_names]
        empty = [
            name
            for name, paths in zip(self.class_names, files, strict=True)
            if not paths and not (may_lack_classes and not (directory / name).is_dir())
        ]
        if empty:
            raise UserError(
                f"{directory} has no image in class {', '.join(empty[:10])}; remove the folder, or add files ending in "
                f"{', '.join(EXTENSIONS)}"
            )
        labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files])
        return [path for paths in files for path in paths], labels.astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        files = [path for name in self.class_names for path in visible_files(self._directory / name)]
        endings = Counter(Path(path).suffix or "no ending" for path in files if not path.lower().endswith(EXTENSIONS))
        counts = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(10))
        return [f"passed over, as no images: {counts}"] if counts else []

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> bytes:
        try:
            with open(self.paths[index], "rb", buffering=0) as file:  # noqa: PTH123 - a third of Path's time
                return file.read()
        except OSError as error:
            raise CorruptImage(f"cannot read image {self.paths[index]}: {error.strerror}") from error

    def __getitem__(self, index: int) -> Sample:
        return {
            "image": decode_rgb(self.encoded(index), self.paths[index]),
            "label": int(self._labels[index]),
        }
