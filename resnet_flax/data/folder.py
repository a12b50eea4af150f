"""Images in one folder per class, in torchvision's ImageFolder order."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from resnet_flax.data.decoding import CorruptImage, decode_rgb
from resnet_flax.data.source import Sample, Source, split_names, stratified_split
from resnet_flax.errors import UserError

# The files that torchvision's ImageFolder treats as images; others are ignored.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_folders(directory: Path) -> tuple[str, ...]:
    """Names of the folders in `directory`, sorted as strings ("10" before "2"): their indices are the class numbers.

    Hidden ones, such as Jupyter's .ipynb_checkpoints, are ignored.
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
    """The visible files that torchvision treats as images."""
    return [path for path in visible_files(directory) if path.lower().endswith(EXTENSIONS)]


class FolderSource(Source):
    """`folder:DIR`: DIR holds train/ and val/ (or validation/, valid/, test/), each with a folder per class.

    A DIR with the class folders directly in it is split by `stratified_split`, with a fifth of each class in the test
    set. Both splits have the classes of the training set. Images are RGB of any size, decoded on access.
    """

    channels = 3

    def __init__(self, directory: str, split: str = "train"):
        self.spec, self.split = f"folder:{directory}", split
        root = Path(directory).expanduser()
        if not root.is_dir():
            raise UserError(
                f"no directory {root}; folder:DIR needs one folder of images per class, directly or in train/ and val/"
            )
        train = root / "train" if (root / "train").is_dir() else root
        chosen = train
        if train != root:
            # The test images of ImageNet and Kaggle are not in class folders: val/ is then used for evaluation.
            folders = [root / name for name in split_names(split)]
            labelled = [folder for folder in folders if folder == train or (folder.is_dir() and class_folders(folder))]
            if not labelled:
                names = "val/, validation/, valid/ or test/"
                raise UserError(f"{root} has train/ but no {names} with class folders to evaluate on")
            chosen = labelled[0]
        self.class_names = class_folders(train)
        if not self.class_names:
            raise UserError(f"no class folders in {train}; expected one folder of images per class")
        self._directory = chosen
        self.paths, self._labels = self._list(chosen, may_lack_classes=chosen != train)
        if train == root:
            kept = stratified_split(self._labels, split)
            self.paths, self._labels = [self.paths[i] for i in kept], self._labels[kept]
        if not self.paths:  # an empty class has been refused above
            raise UserError(f"no images for split {split!r} in {root}: a class needs at least two to have one held out")

    def _list(self, directory: Path, *, may_lack_classes: bool) -> tuple[list[str], np.ndarray]:
        unknown = sorted(set(class_folders(directory)) - set(self.class_names))
        if unknown:
            raise UserError(f"{directory} has classes that are not in the training set: {', '.join(unknown[:10])}")
        files = [image_files(directory / name) for name in self.class_names]
        empty = [
            name
            for name, paths in zip(self.class_names, files, strict=True)
            if not paths and not (may_lack_classes and not (directory / name).is_dir())
        ]
        if empty:
            raise UserError(
                f"{directory} has no images of class {', '.join(empty[:10])}; remove the folder, or add files like "
                f"{', '.join(EXTENSIONS)}"
            )
        labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files])
        return [path for paths in files for path in paths], labels.astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        files = [path for name in self.class_names for path in visible_files(self._directory / name)]
        endings = Counter(
            Path(path).suffix or "no extension" for path in files if not path.lower().endswith(EXTENSIONS)
        )
        counts = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(10))
        return [f"ignored, not images: {counts}"] if counts else []

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> bytes:
        try:
            with open(self.paths[index], "rb", buffering=0) as file:  # noqa: PTH123 - a third of Path's time
                return file.read()
        except OSError as error:
            raise CorruptImage(self.paths[index], error.strerror or str(error)) from error

    def __getitem__(self, index: int) -> Sample:
        return {
            "image": decode_rgb(self.encoded(index), self.paths[index]),
            "label": int(self._labels[index]),
        }
