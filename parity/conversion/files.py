"""Files that appear whole or not at all, and the one way in which files are opened: only regular ones, at once."""

import contextlib
import errno
import fcntl
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from parity.errors import ParityError

LEAST_FREE = 2**20  # bytes; a disk with less counts as full
INCOMPLETE = ".incomplete-"  # begins the name of a folder with a file that is being written
KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a named pipe, not a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, not a file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, not a file"),
)


def tidied(path: str | os.PathLike) -> Path:
    """The path without `a/..`, as it is shown; as it is if that is another place, because `a` is a link."""
    path = Path(path)
    short = Path(os.path.normpath(path)) if ".." in path.parts else path
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def write_whole(path: Path, write: Callable[[Path], object], *, new: bool = False) -> None:
    """Calls `write` with a temporary path, then renames that to `path`: the file appears whole or not at all.

    The bytes are on the disk before the name is, so this holds through a loss of power too. What writers that were
    killed have left in the folder is removed. What is no file, such as /dev/stdout, is written to as it is.

    Args:
        new: fail if there is a file already, also if another process has just made it.

    Raises:
        FileExistsError: with `new`, if there is a file.
        ParityError: if it cannot be written; nothing is left behind.
    """
    try:
        if not new and path.exists() and not (path.is_file() or path.is_dir()):
            _require_reader(path)
            write(path)
            return
        target = path.resolve()  # a link stays one
        remove_incomplete(target.parent)
        with incomplete_folder(target.parent) as folder:
            temporary = folder / path.name
            try:
                write(temporary)
            except Exception as error:  # torch and safetensors wrap a full disk in errors of their own
                if shutil.disk_usage(folder).free < LEAST_FREE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # safetensors makes its files private
            _sync(temporary)
            if new:
                _link(temporary, target)
            else:
                temporary.replace(target)
            _sync(target.parent)
    except FileExistsError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or error  # without the temporary file's name
        raise ParityError(f"cannot write {path}: {reason}") from error


def _require_reader(path: Path) -> None:
    """Raises OSError for a named pipe that nobody reads: opening it would wait for a reader."""
    if not path.is_fifo():
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a named pipe that no process reads", str(path)) from error
        raise


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """`write_whole` for text in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), new=new)


def remove_incomplete(folder: Path) -> None:
    """Removes what writers that were killed have left in `folder`. Those of living processes hold a lock."""
    for abandoned in folder.glob(f"{INCOMPLETE}*"):
        with contextlib.suppress(OSError), _locked(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(abandoned)


@contextlib.contextmanager
def incomplete_folder(parent: Path) -> Generator[Path]:
    """A temporary folder in `parent`, locked for as long as it is used."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=INCOMPLETE, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks; `remove_incomplete` leaves it alone too
                stack.enter_context(_locked(folder, fcntl.LOCK_EX))
            folder.mkdir(exist_ok=True)  # another process may have removed it before it was locked
            yield folder


@contextlib.contextmanager
def _locked(folder: Path, operation: int) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def _link(temporary: Path, target: Path) -> None:
    """Gives the file its name unless that is taken."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        temporary.replace(target)


def open_regular(path: str | os.PathLike) -> io.FileIO:
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


def require_regular_tree(directory: Path) -> None:
    """Raises OSError, as `open_regular`, for a directory that has anything but directories and regular files below it.

    For libraries that open what they find there, and would wait for a pipe.
    """
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile, or a link to nothing
                _require_regular(os.stat(path).st_mode, path)  # noqa: PTH116


def require_readable(path: Path) -> None:
    """Raises ParityError for anything but a directory or a regular file that may be read, under a name in UTF-8.

    The libraries that read weights take no other names.
    """
    try:
        str(path).encode()
        if path.is_dir():
            os.scandir(path).close()
        else:
            open_regular(path).close()
    except FileNotFoundError as error:
        raise ParityError(f"{path} does not exist") from error
    except OSError as error:
        raise ParityError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeEncodeError as error:
        raise ParityError(f"{path} cannot be read: its name is not UTF-8; rename it") from error
    except ValueError as error:
        raise ParityError(f"{path} cannot be read: {error}") from error


def require_writable(*paths: Path | None) -> None:
    """Raises ParityError unless a file can be written at each of the paths; for use before long work."""
    for path in paths:
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise ParityError(f"{path.absolute().parent} is not a directory")
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise ParityError(f"cannot write {path}: it is {'a directory' if path.is_dir() else 'not permitted'}")
