"""Errors that a user can correct, and the one place where a command turns them into a message and exit status 2.

What a message quotes (names of files and classes, metadata, other libraries' texts) comes from outside, so `dispatch`
escapes it before it reaches a terminal.
"""

import difflib
import errno
import gc
import importlib
import io
import logging
import os
import signal
import sys
import sysconfig
import traceback
import unicodedata
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def printable(text: object) -> str:
    """The text as a terminal may show it: what would move its cursor, change its state or reorder it is escaped.

    That is Unicode's categories Cc (control), Cf (format, such as the bidirectional overrides), Cs (surrogates, for the
    bytes of a file name that is not UTF-8), Zl and Zp (separators). Line feeds and tabs stay, and so do the two joiners
    that scripts are written with (U+200C, U+200D).
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNPRINTABLE and character not in _KEPT
        else character
        for character in str(text)
    )


_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_KEPT = "\n\t\u200c\u200d"


class _PrintableFormatter(logging.Formatter):
    """Levels in lower case, as this program's own messages have them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(f"{record.levelname.lower()}: {super().format(record)}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A Python warning as a line, without the place in some library that Python names with it."""
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def _report(error: object) -> int:
    print(f"error: {printable(error)}", file=sys.stderr)
    return 2


def _close_stdout() -> None:
    """Lets the interpreter's last flush go nowhere: it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):  # a name may have characters that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(handlers=[handler])  # warnings and errors, on stderr
    if not warnings.filters or warnings.filters[0][0] != "error":  # who has made them errors gets them as errors
        warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]


class UsageError(ValueError):
    """Unusable input: the message is one sentence that names the thing, what was expected and found, and what to do.

    A command prints it without a traceback and exits with status 2.
    """


class ParityError(UsageError):
    """What was given cannot be converted or compared; the message names what, where, and what to do.

    Attributes:
        message: the text without `hint`, which is advice for callers of the Python functions.

    Examples:
        >>> import parity
        >>> try:
        ...     parity.load_checkpoint("mine.safetensors")
        ... except parity.ParityError as error:
        ...     print(error)
        mine.safetensors does not exist
    """

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message + hint)
        self.message = message


class MissingPackageError(UsageError, ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra."""


@contextmanager
def needs_extra(extra: str, what: str, otherwise: str = "") -> Generator[None]:
    """Around the import of optional packages: one that is absent becomes a sentence that names its extra.

    Args:
        extra: the extra of resnet-flax that installs it.
        what: what cannot be done without it, the subject of the sentence: "training", "reading a.pth".
        otherwise: another remedy, which continues the sentence: "use a .safetensors file".

    Raises:
        MissingPackageError: if a package is not installed, or is and cannot be imported.
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        way_on = f"pip install 'resnet-flax[{extra}]'" + (f", or {otherwise}" if otherwise else "")
        raise MissingPackageError(f"{what} needs {package}{reason}: {way_on}") from error


@contextmanager
def importing() -> Generator[None]:
    """Around a command's imports: no garbage is collected, and Ctrl-C ends the process at once, with status 130.

    Imports leave hundreds of thousands of objects that live as long as the process. Searching them again and again was
    a seventh of what `predict` took, so none of them is searched afterwards, either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with _quits_on_interrupt():
            yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _quits_on_interrupt() -> Generator[None]:
    """Some libraries turn a KeyboardInterrupt in the middle of their import into an error of another kind."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _quit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


Commands = Mapping[str, tuple[str, str]]
"""{name: (its module, one line about it)}. Each is imported only when asked for: none pays for another's libraries."""


def dispatch(package: str, commands: Commands, arguments: list[str]) -> int:
    """Runs `python -m PACKAGE COMMAND ...`: imports the command's module, calls its `main`, returns the exit status.

    A `UsageError`, a file that the system refuses, or running out of memory becomes a message on stderr and status 2;
    Ctrl-C gives status 130, and a pipe whose reader has gone (`| head`) 141, as in a shell.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        rows = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in commands.items())
        print(f"usage: python -m {package} COMMAND [...]\n\n{rows}\n\npython -m {package} COMMAND --help explains one.")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(commands)}"
        return _report(f"no command {name!r}; {hint}")
    _prepare_streams()
    try:
        try:
            with importing():
                command = importlib.import_module(commands[name][0])
            return command.main(rest)
        finally:
            if sys.stdout is not None:  # as with >&-
                sys.stdout.flush()
    except UsageError as error:
        return _report(error)
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        if "home directory" in reason:  # of pathlib: there is no HOME, and the user has no entry in /etc/passwd
            return _report("the home directory of this user is not known; set HOME, or give paths without ~")
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        return _report(f"out of memory ({reason}); a smaller batch or smaller images need less")
    except BrokenPipeError:
        _close_stdout()
        return 141
    except OSError as error:
        if error.filename is None:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            _close_stdout()
            return _report(f"the output cannot be written: {error.strerror}")
        return _report(f"{os.fsdecode(error.filename)}: {error.strerror}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr, flush=True)
    gc.collect()  # frees what the command held, now that its frames are gone, and with it ends its worker processes
    os._exit(130)  # the usual way out waits for the threads of JAX, PyTorch and Orbax, or crashes under them


def first_line(error: Exception) -> str:
    """What it says first; JAX's errors continue with programs and advice."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(". ")


def place_of(error: Exception) -> str:
    """The last line of the caller's own code on the way to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parent), *sysconfig.get_paths().values())
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
