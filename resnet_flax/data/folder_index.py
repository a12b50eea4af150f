"""What the folders of a data set hold, kept in the cache directory: a folder is listed again only when it has changed.

A folder's times change whenever an entry is added, removed, renamed or replaced by another file. What a file contains
is not kept, and neither is a folder that holds links, whose targets change without it, nor one that has changed within
the last minute, in which a second change might leave the same times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from parity.conversion.files import write_text
from parity.errors import printable
from resnet_flax.cache import cache_directory

SETTLED = 60.0  # seconds; the clock of a file server may be another
SHOWN_AFTER, SHOWN_EVERY = 2.0, 0.2  # seconds


NO_DATA = ("__MACOSX",)  # what archive programs add


class Listing(NamedTuple):
    """What is in a folder, without what is hidden.

    Attributes:
        folders: names, sorted by their bytes.
        files: names of everything else, sorted.
        links: those of either that are links.
    """

    folders: list[str]
    files: list[str]
    links: frozenset[str] = frozenset()


class Index:
    """The folders below a root.

    Attributes:
        known: {folder: [its times and inode, names of folders, names of files]}.
        listed: files found by listing, which takes time.
    """

    def __init__(self, root: Path):
        self.root, self.listed, self._began, self._shown = root, 0, time.monotonic(), 0.0
        self.known = _read(root)
        self._seen: dict[str, tuple[list[int], Listing]] = {}

    def listing(self, directory: str, state: os.stat_result) -> Listing:
        """What is in a folder, of which `state` was read before; the same again while it has not changed.

        Raises:
            OSError: if it cannot be listed.
        """
        stamp = [state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        if directory in self._seen and self._seen[directory][0] == stamp:
            return self._seen[directory][1]
        known = self.known.get(directory)
        if known is not None and known[0] == stamp:
            listing = Listing(*known[1:])
        else:
            listing = listed(directory)
            self._show(len(listing.files))
        self._seen[directory] = stamp, listing
        return listing

    def save(self) -> None:
        """Keeps what was seen, if that is not what was read; where it cannot, the next run lists the folders again."""
        self._end()
        settled = (time.time() - SETTLED) * 1e9
        known = self.known | {
            directory: [stamp, listing.folders, listing.files]
            for directory, (stamp, listing) in self._seen.items()
            if max(stamp[:2]) < settled and not listing.links
        }
        if known != self.known:
            text = json.dumps(known)
            with contextlib.suppress(OSError, RuntimeError):
                write_text(_file_of(self.root), f"{_digest(text)}\n{text}")

    def _show(self, files: int) -> None:
        self.listed += files
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._began > SHOWN_AFTER and now - self._shown > SHOWN_EVERY:
            self._shown = now
            print(f"\r{printable(str(self.root))}: {self.listed:,} files", end="", file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif (seconds := time.monotonic() - self._began) > SHOWN_AFTER and self.listed:
            print(f"{printable(str(self.root))}: {self.listed:,} files listed in {seconds:.0f} s", file=sys.stderr)


def listed(directory: str) -> Listing:
    """What is in a folder now.

    Raises:
        OSError: if it cannot be listed.
    """
    folders, files, links = [], [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in NO_DATA:
                continue
            (folders if _is_folder(entry) else files).append(name)
            if entry.is_symlink():
                links.append(name)
    return Listing(sorted(folders, key=os.fsencode), sorted(files), frozenset(links))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


_index: ContextVar[Index | None] = ContextVar("_index", default=None)


@contextlib.contextmanager
def indexed(root: Path) -> Generator[Index]:
    """Inside, folders are listed with the help of the root's index, which is saved on leaving."""
    token = _index.set(index := Index(root))
    try:
        yield index
    finally:
        _index.reset(token)
        index.save()


def listing_of(directory: str | Path) -> Listing:
    """What is in a folder, from the index if one is open and knows it.

    Raises:
        OSError: if it cannot be listed.
    """
    path, index = os.fspath(directory), _index.get()
    return listed(path) if index is None else index.listing(path, os.stat(path))  # noqa: PTH116


def _file_of(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]
    return cache_directory("folders") / f"{name}.json"


def _read(root: Path) -> dict[str, list[Any]]:
    """What is known of the root; nothing where the file is missing, damaged, or cannot be read."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        digest, text = _file_of(root).read_text(encoding="utf-8").split("\n", 1)
        if digest == _digest(text):
            return json.loads(text)
    return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
