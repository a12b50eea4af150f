"""What the writers of data sets have in common: folders that appear whole, and images as they are stored."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from parity.conversion.files import incomplete_folder, remove_incomplete
from resnet_flax.data.transforms import to_pil
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from resnet_flax.data.source import Source

PER_SHARD = 10_000  # images in a file
STORED_AS = {"train": "train", "val": "validation", "test": "test"}
"""{split: what others call it}."""


def disk_trouble(error: BaseException) -> str | None:
    """Why the disk refused a write; None for any other error. array_record raises RuntimeErrors with the text alone."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        return "the disk is full"
    return error.strerror or str(error) if isinstance(error, OSError) else None


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary folder, then renames that to `target`, with the folders above it made as needed.

    Nothing is left after a failure; what a writer that was killed has left is removed by the next.

    Raises:
        UserError: if the target exists, or the disk refuses it.
    """
    created: list[Path] = []
    try:
        if target.exists() or target.is_symlink():
            raise UserError(f"{target} exists; remove it or choose another name")
        created = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_incomplete(target.parent)
        with incomplete_folder(target.parent) as folder:
            temporary = folder / target.name
            temporary.mkdir()
            write(temporary)
            temporary.rename(target)
    except BaseException as error:
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        reason = disk_trouble(error)
        if reason:
            raise UserError(f"cannot write {target}: {reason}; no files were left there") from error
        raise


class Stored(NamedTuple):
    """An image as it is written: a file of JPEG or PNG, its ending (.jpg or .png), and its label."""

    image: bytes
    ending: str
    label: int


def stored_images(source: Source, indices: range, on_sample: Callable[[], None]) -> Iterator[Stored]:
    """Images as JPEG or PNG: files of these kinds byte for byte, everything else as PNG; the pixels stay the same.

    Every image is decoded first, so a damaged one stops the writing.
    """
    for index in indices:
        sample = source[index]
        stored = source.encoded(index) or b""
        if not stored.startswith((b"\xff\xd8", b"\x89PNG")):
            buffer = io.BytesIO()
            to_pil(sample["image"]).save(buffer, "PNG")
            stored = buffer.getvalue()
        yield Stored(stored, ".jpg" if stored.startswith(b"\xff\xd8") else ".png", sample["label"])
        on_sample()


def shards(source: Source) -> list[range]:
    """The indices of the images in each file."""
    return [range(start, min(start + PER_SHARD, len(source))) for start in range(0, len(source), PER_SHARD)]
