"""Files that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

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


def require_readable(path: Path) -> None:
    """Raises ParityError for a file or directory without read permission."""
    if path.exists() and not os.access(path, os.R_OK):
        raise ParityError(f"{path} cannot be read: permission denied")
