"""What the folders of an image directory mean: wrappers, splits, or classes; and the files in them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from parity.errors import printable
from resnet_flax.data.folder_index import Listing, listing_of
from resnet_flax.data.splits import SPLITS, split_of
from resnet_flax.errors import UserError

# The files that torchvision's ImageFolder treats as images; others are ignored.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@functools.cache
def _kernels() -> dict[int, str]:
    """{device: where it is mounted} of the file systems that the kernel makes up: their links lead everywhere."""
    return {os.stat(path).st_dev: path for path in ("/proc", "/sys") if os.path.ismount(path)}  # noqa: PTH116


def _listing(directory: str | Path) -> Listing:
    try:
        if kernel := _kernels().get(os.stat(directory).st_dev):  # noqa: PTH116
            raise UserError(f"cannot list {directory}: it is of the kernel's {kernel}, which has no images")
        return listing_of(directory)
    except OSError as error:
        raise UserError(f"cannot list {directory}: {(error.strerror or str(error)).lower()}") from error


def _inode(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


def class_folders(directory: Path) -> tuple[str, ...]:
    """Names of the folders in `directory`, sorted as strings ("10" before "2"): their indices are the class numbers.

    Hidden ones, such as Jupyter's .ipynb_checkpoints, are ignored, and so are links to the directory or its parents.

    Raises:
        UserError: if a name is not UTF-8, or the directory cannot be listed.
    """
    listing = _listing(directory)
    names = listing.folders
    if listing.links:
        above = {_inode(parent) for parent in (directory, *directory.absolute().parents)}
        names = [name for name in names if not (name in listing.links and _inode(directory / name) in above)]
    for name in names:
        if not name.isprintable() and any(0xDC80 <= ord(character) <= 0xDCFF for character in name):
            raise UserError(f"the name of the folder {name!r} in {directory} is not UTF-8; rename it")
    return tuple(sorted(names))


def visible_files(directory: str | Path) -> list[str]:
    """Paths of all files below `directory`, in torchvision's order, without hidden ones, such as macOS's ._1.jpg.

    Links to folders are followed, to each folder once and to none that `directory` is in: links may form circles.
    """
    above = (*Path(directory).absolute().parents, *Path(os.path.realpath(directory)).parents)
    seen = {_inode(parent) for parent in above}
    folders, rows = [str(directory)], []
    while folders:
        folder = folders.pop()
        if (inode := _inode(folder)) in seen:
            continue
        seen.add(inode)
        listing = _listing(folder)
        folders += reversed([f"{folder}{os.sep}{name}" for name in listing.folders])
        rows.append((folder, listing.files))
    return [f"{folder}{os.sep}{name}" for folder, names in sorted(rows) for name in names]


def is_image(path: str) -> bool:
    """Whether torchvision takes a file of this name for an image."""
    return path.lower().endswith(EXTENSIONS)


def image_files(directory: Path) -> list[str]:
    """The visible files that torchvision treats as images."""
    return [path for path in visible_files(directory) if is_image(path)]


def images_directly_in(directory: Path) -> int:
    """The number of image files that are in `directory` itself."""
    return sum(map(is_image, _listing(directory).files))


def unwrapped(directory: Path, *, is_split: bool = False, classes: Collection[str] = ()) -> tuple[Path, list[str]]:
    """The directory, or the folder inside it that is all it holds, such as chest/chest; and a note if so.

    A folder that holds no folders, is one of `classes`, or outside of a split is itself named like one is no wrapper.
    """
    path = directory
    while len(names := class_folders(path)) == 1 and not images_directly_in(path):
        inner = path / names[0]
        if names[0] in classes or (split_of(names[0]) and not is_split) or not class_folders(inner):
            break
        path = inner
    note = f"{directory} holds only {path.relative_to(directory)}, which is taken for a wrapper and not for one class"
    return path, [] if path == directory else [note]


@dataclass(frozen=True)
class Layout:
    """The splits of an image directory.

    Attributes:
        root: the directory, without wrappers.
        folders: {split: the folders that may be it}; of a directory without splits {"train": [root]}.
        notes: what was followed or ignored.
    """

    root: Path
    folders: dict[str, list[Path]]
    notes: tuple[str, ...]

    def path(self, split: str) -> Path:
        """The folder of a split.

        Raises:
            UserError: if several may be it.
        """
        folders = self.folders[split]
        exact = [folder for folder in folders if folder.name.lower() == split]
        if len(folders) == 1 or len(exact) == 1:
            return (exact or folders)[0]
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"{self.root} has several folders for the split {split!r}: {names}; keep or rename all but one")


def find_layout(directory: Path, *, classes_are_given: bool = False) -> Layout:
    """Finds the splits in a directory without looking into any but the training set.

    Folders are splits if their names say so (`split_of`) and the training set among them holds folders; otherwise they
    are classes, which makes a class of trains possible.

    Raises:
        UserError: if the folders can be neither, or either; the message lists what was seen.
    """
    root, notes = unwrapped(directory)
    names = class_folders(root)
    found = {split: [name for name in names if split_of(name) == split] for split in SPLITS}
    others = [name for name in names if split_of(name) is None]
    siblings = found["val"] + found["test"]
    if found["train"]:
        train = Layout(root, {"train": [root / name for name in found["train"]]}, ())
        holds_classes = any(class_folders(folder) for folder in train.folders["train"])
        classes = [name for name in others if images_directly_in(root / name)]
        if holds_classes and classes and not siblings:
            raise UserError(
                f"{root} holds {_listed(found['train'])} with folders in it, and {_listed(classes)} with images: "
                f"{found['train'][0]} may be a split or a class; give {root / found['train'][0]}, or rename it"
            )
        if holds_classes:
            ignored = [f"ignored beside the splits in {root}: {_listed(others)}"] if others else []
            folders = {split: [root / name for name in found[split]] for split in SPLITS if found[split]}
            layout = Layout(root, folders, ())
            for split, several in folders.items():
                with contextlib.suppress(UserError):  # nobody may ask for it
                    unused = [folder.name for folder in several if folder != layout.path(split)]
                    ignored += [f"ignored beside {layout.path(split)}: {_listed(unused)}"] if unused else []
            return Layout(root, folders, (*notes, *ignored))
        if not classes:
            raise UserError(
                f"{root} holds {_listed(names)}, which are splits by their names, but {found['train'][0]} has "
                f"{images_directly_in(root / found['train'][0]):,} images and no class folders; expected one folder of "
                "images per class in it"
            )
    elif siblings and not others:
        raise UserError(
            f"{root} holds {_listed(names)} and no training split; evaluate all of one with --data "
            f"whole:{root / siblings[0]}, or train on it with --data folder:{root / siblings[0]}"
        )
    if not classes_are_given:
        _require_classes(root, names)
    return Layout(root, {"train": [root]}, tuple(notes))


def _require_classes(root: Path, names: Collection[str]) -> None:
    """Refuses folders that all hold the same folders, and no images: their contents look like the classes."""
    inside = [set(class_folders(root / name)) for name in names]
    common = set.intersection(*inside) if len(inside) > 1 else set()
    # One folder that all have, such as Tiny ImageNet's CLASS/images, cannot be told apart from any other.
    if len(common) < 2 and not any(split_of(name) for name in common):
        return
    if any(images_directly_in(root / name) for name in names):
        return
    raise UserError(
        f"the folders of {root} ({_listed(names)}) cannot be its classes: each of them holds the folders "
        f"{_listed(sorted(common))}; give the directory that has the class folders, name splits train, val and test, "
        "or list the class folders with --classes FILE"
    )


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:8]
    return printable(", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""))
