"""Files that appear whole or not at all, and the one way in which files are opened: only regular ones, at once."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from parity.errors import ParityError

LEAST_FREE = 2**20  # bytes; a disk with less counts as full


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, then renames: the file appears whole or not at all.

    Raises:
        ParityError: if it cannot be written; nothing is left behind.
    """
    target = path.resolve()  # a link stays one
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            try:
                write(temporary)
            except Exception as error:  # torch and safetensors wrap a full disk in errors of their own
                if shutil.disk_usage(folder).free < LEAST_FREE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # safetensors makes its files private
            temporary.replace(target)
    except Exception as error:
        reason = getattr(error, "strerror", None) or error  # without the temporary file's name
        raise ParityError(f"cannot write {path}: {reason}") from error


KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a named pipe, not a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, not a file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, not a file"),
)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading, unbuffered, without ever waiting for one: a pipe has no end to wait for.

    Raises:
        OSError: with a `strerror` that continues "cannot read PATH: ", for anything but a readable regular file.
    """
    name = os.fspath(path)
    try:
        _require_regular(os.stat(path).st_mode, name)  # noqa: PTH116 - before opening: that alone can wind a tape
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name, or a character that file names cannot have
        raise OSError(errno.EINVAL, f"no file can have this name ({error})", name) from error
    try:
        _require_regular(os.fstat(descriptor).st_mode, name)  # it may have been replaced meanwhile
        return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - a third of Path's time
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(mode: int, name: str) -> None:
    for is_kind, number, reason in KINDS:
        if is_kind(mode):
            raise OSError(number, reason, name)


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The content of a regular file, no more than the size that its directory states: /proc has files without end.

    Raises:
        OSError: as `open_regular`, and for more than `limit` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {limit:,}", os.fspath(path))
        return file.read(size) or b""


def require_readable(path: Path) -> None:
    """Raises ParityError for anything but a directory or a regular file that may be read."""
    try:
        if path.is_dir():
            os.scandir(path).close()
        else:
            open_regular(path).close()
    except FileNotFoundError as error:
        raise ParityError(f"{path} does not exist") from error
    except OSError as error:
        raise ParityError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise ParityError(f"{path} cannot be read: {error}") from error
