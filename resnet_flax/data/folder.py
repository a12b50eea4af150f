"""Images in one folder per class, in torchvision's ImageFolder order."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from parity.conversion.files import read_regular
from resnet_flax.data.class_list import read_class_list
from resnet_flax.data.decoding import CorruptImage, decode_rgb
from resnet_flax.data.folder_index import indexed
from resnet_flax.data.layout import (
    EXTENSIONS,
    Layout,
    class_folders,
    find_layout,
    images_directly_in,
    is_image,
    unwrapped,
    visible_files,
)
from resnet_flax.data.source import Sample, Source, SourceOptions
from resnet_flax.data.splits import Choice, canonical, choose
from resnet_flax.errors import UserError

IMAGE_BYTES = 2**30
"""The largest image file that is read."""


def read_image(path: str | Path) -> bytes:
    """The content of an image file.

    Raises:
        CorruptImage: if it cannot be read, or is no regular file.
    """
    try:
        return read_regular(path, IMAGE_BYTES)
    except OSError as error:
        raise CorruptImage(str(path), error.strerror or str(error)) from error


def open_folder(directory: str, split: str = "train", *, options: SourceOptions | None = None) -> Source:
    """`folder:DIR`: one folder of images per class, or with `options.labels` any folder with a file of labels."""
    options = options or SourceOptions()
    if options.labels is not None:
        from resnet_flax.data.label_file import open_labelled

        return open_labelled(directory, split, options)
    if options.image is not None or options.label is not None:
        raise UserError(f"--image and --label are columns of the file of labels (--labels FILE) for folder:{directory}")
    return FolderSource(directory, split, options=options)


class FolderSource(Source):
    """`folder:DIR`: DIR holds a folder per class, or a folder per split (`splits.split_of`) with a folder per class.

    All splits have the classes of the training set. Images are RGB of any size, decoded on access.
    """

    channels = 3
    scheme = "folder"

    def __init__(self, directory: str, split: str = "train", *, options: SourceOptions | None = None):
        with indexed(Path(directory).expanduser()):
            self._open(directory, split, options or SourceOptions())

    def _open(self, directory: str, split: str, options: SourceOptions) -> None:
        self.spec, self._decoding = f"{self.scheme}:{directory}", options.decoding
        given = Path(directory).expanduser()
        if not given.is_dir():
            raise UserError(
                f"no directory {given}; {self.scheme}:DIR needs one folder of images per class"
                + (", directly or in train/ and val/" if self.scheme == "folder" else "")
            )
        layout = find_layout(given, classes_are_given=options.classes is not None)
        choice = self._choice(split, layout, options)
        train, notes = unwrapped(layout.path("train"), is_split=True)
        self._notes = [*layout.notes, *notes]
        folders = class_folders(train)
        if not folders:
            raise UserError(f"no class folders in {train}; expected one folder of images per class")
        if options.classes is None:
            self.class_names = folders
            numbers = {name: number for number, name in enumerate(folders)}
        else:
            self.class_names, numbers = read_class_list(options.classes)
            if ignored := sorted(set(folders) - set(numbers)):
                self._notes.append(f"ignored, not in {options.classes}: {', '.join(ignored[:10])}")
        chosen = train
        if choice.stored != "train":
            chosen, notes = unwrapped(layout.path(choice.stored), is_split=True, classes=numbers)
            self._notes += notes
        self.paths, self._labels = self._list(chosen, numbers, folders, options, may_lack_classes=chosen != train)
        kept = choice.indices(self._labels)
        self.paths, self._labels = [self.paths[i] for i in kept], self._labels[kept]
        self.split, self.splits, self.origin = choice.split, choice.splits, choice.origin(str(chosen))
        self._notes += [choice.note] if choice.note else []
        if not self.paths:
            raise UserError(
                f"no images for split {split!r} in {chosen}: a class needs at least two to have one held out"
            )

    @staticmethod
    def _choice(split: str, layout: Layout, options: SourceOptions) -> Choice:
        return choose(
            split,
            layout.folders,
            options.split_by,
            name=str(layout.root),
            usable=lambda stored: bool(class_folders(layout.path(stored))),
        )

    def _list(
        self,
        directory: Path,
        numbers: dict[str, int],
        known: tuple[str, ...],
        options: SourceOptions,
        *,
        may_lack_classes: bool,
    ) -> tuple[list[str], np.ndarray]:
        here = class_folders(directory)
        if unknown := sorted(set(here) - set(known) - set(numbers)):
            raise UserError(f"{directory} has classes that are not in the training set: {', '.join(unknown[:10])}")
        paths, labels, empty, endings, nested = [], [], [], Counter(), []
        for folder, number in sorted(numbers.items(), key=lambda item: (item[1], item[0])):
            files = visible_files(directory / folder) if folder in here else []
            images = [path for path in files if is_image(path)]
            if len(images) < len(files):
                endings.update(Path(path).suffix or "no extension" for path in files if not is_image(path))
            if not images and (folder in here or not may_lack_classes):
                empty.append(folder)
            if len(inner := _folders_of(images, directory / folder)) > 1:
                nested.append(f"{folder} ({', '.join(inner[:4])}{', ...' if len(inner) > 4 else ''})")
            paths += images
            labels += [number] * len(images)
        if nested:
            self._notes.append(f"one class each, subfolders included: {', '.join(nested[:4])}")
        if empty and not options.allow_empty:
            missing = ", ".join(name[:80] for name in empty[:10])
            listed = f" (listed in {options.classes})" if options.classes else ""
            raise UserError(
                f"{directory} has no images of class {missing}{listed}; remove the {'entry' if listed else 'folder'}, "
                f"add files like {', '.join(EXTENSIONS)}, or allow it with --allow-empty"
            )
        self._notes += [f"without images: {', '.join(empty[:10])}"] if empty else []
        if loose := images_directly_in(directory):
            self._notes.append(f"ignored, in no class folder: {loose:,} images directly in {directory}")
        counts = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(10))
        self._notes += [f"ignored, not images: {counts}"] if counts else []
        return paths, np.array(labels, np.int64)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def notes(self) -> list[str]:
        return self._notes

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> bytes:
        return read_image(self.paths[index])

    def __getitem__(self, index: int) -> Sample:
        return {
            "image": decode_rgb(self.encoded(index), self.paths[index], self._decoding),
            "label": int(self._labels[index]),
        }


class WholeFolder(FolderSource):
    """`whole:DIR`: DIR holds a folder per class, and all of its images are the test split, whichever is asked for."""

    scheme = "whole"

    @staticmethod
    def _choice(split: str, layout: Layout, options: SourceOptions) -> Choice:
        if canonical(split) == "train" or options.split_by is not None:
            raise UserError(
                f"whole:{layout.root} is one test split, for --evaluate or --split test; folder:{layout.root} trains"
            )
        if set(layout.folders) != {"train"} or layout.folders["train"] != [layout.root]:
            raise UserError(
                f"{layout.root} has splits; give the folder of one of them to whole:DIR, or folder:{layout.root} and "
                "--split"
            )
        return Choice("test", "train", "all", 0.0, None, ("test",))


def _folders_of(images: list[str], directory: Path) -> list[str]:
    """The folders directly in `directory` that hold some of these images, which are below it."""
    start = len(str(directory)) + 1
    return sorted({first for path in images for first, inner, _ in [path[start:].partition(os.sep)] if inner})
