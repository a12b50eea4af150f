"""Orbax directories of weights, written whole and read back; and Orbax's failures in one line, without tracebacks."""

import contextlib
import errno
import gc
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from parity.conversion.files import require_readable, require_regular_tree
from parity.errors import ParityError, needs_extra

# (logger, part of the message) of the tracebacks of abandoned work: asyncio's in Python 3.11 to 3.14, Orbax 0.12.8's.
ABANDONED = (
    ("asyncio", "exception was never retrieved"),
    ("absl", "Thread.run() raised an exception"),
    ("absl", "in background save thread"),
    ("absl", "Checkpointer failed"),
    ("absl", "Save Finalize thread"),
)


class _Quiet:
    """The log filter and the `sys.unraisablehook` that are in place while anyone holds `quiet_abandoned_work`."""

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._shown: Callable[[Any], object] = sys.unraisablehook

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(record.name == logger and part in text for logger, part in ABANDONED)

    def hook(self, unraisable: Any) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        code = getattr(unraisable.object, "cr_code", None)
        if not closed and not (code and "orbax" in code.co_filename):
            self._shown(unraisable)

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                for logger in {name for name, _ in ABANDONED}:
                    logging.getLogger(logger).addFilter(self)
                self._shown, sys.unraisablehook = sys.unraisablehook, self.hook

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                for logger in {name for name, _ in ABANDONED}:
                    logging.getLogger(logger).removeFilter(self)
                if sys.unraisablehook == self.hook:
                    sys.unraisablehook = self._shown


_quiet = _Quiet()


@contextlib.contextmanager
def quiet_abandoned_work() -> Generator[None]:
    """Hides the tracebacks of the reads and writes that Orbax abandons when one of them fails.

    There are hundreds: of those that fail as well and, some time later, of those that find their event loop closed.
    Orbax still raises the first error. Hold the context for as long as Orbax works; it may be nested.
    """
    _quiet.hold()
    try:
        yield
    except BaseException as error:
        collect_abandoned_work(error)
        raise
    finally:
        _quiet.release()


def collect_abandoned_work(error: BaseException | None = None) -> None:
    """Frees what an Orbax call that failed has left, so that its tracebacks do not appear after the context.

    Args:
        error: the failure; the local variables in its traceback would keep the work alive, and are cleared.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    for _ in range(3):  # a task that is freed frees its coroutine only then, and TensorStore's threads may hold some
        gc.collect()
        time.sleep(0.05)


def orbax_reason(error: Exception) -> str:
    """The message of Orbax or TensorStore, without the specification of the array that they append."""
    if (full := os.strerror(errno.ENOSPC)) in str(error):
        return full
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()).partition(" See full TensorStore details")[0][:200].rstrip(".")


def require_orbax_name(path: Path) -> None:
    """Raises ParityError for a path that Orbax can write but not read, because of a wildcard in it, or not write."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ParityError(f"Orbax cannot write to a path that is not UTF-8: {path}; use another") from error
    if wildcards := sorted(set("*?[") & set(str(path.absolute()))):
        raise ParityError(
            f"Orbax cannot read a checkpoint from a path with {' or '.join(wildcards)}: {path}; use another"
        )


def write_orbax(path: str | os.PathLike, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays and JSON metadata as an Orbax checkpoint directory, whole or not at all.

    Raises:
        ParityError: if it cannot be written.
    """
    with needs_extra("train", f"writing {path} with Orbax"):
        import orbax.checkpoint as ocp

    path = Path(path).absolute()
    require_orbax_name(path)
    _remove_incomplete(path)  # of a process that was killed while it wrote
    try:
        with quiet_abandoned_work(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(dict(metadata)))
            checkpointer.save(path, args=args)
    except Exception as error:
        _remove_incomplete(path)
        raise ParityError(f"cannot write {path}: {orbax_reason(error)}") from error


def _remove_incomplete(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


def read_orbax(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nested dict of numpy arrays and the metadata that `write_orbax` wrote.

    Raises:
        ParityError: if the directory is not such a checkpoint, or is damaged.
    """
    with needs_extra("train", f"reading {path} with Orbax"):
        import orbax.checkpoint as ocp

    path = Path(path).absolute()
    require_readable(path)
    try:
        require_regular_tree(path)
        with (
            quiet_abandoned_work(),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "metadata")) as checkpointer,
        ):
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(), metadata=ocp.args.JsonRestore())
            restored = checkpointer.restore(path, args=args)
        return restored["state"], json.loads(json.dumps(restored["metadata"]))
    except Exception as error:
        # Perhaps the directory of a training run, or one of its checkpoints, which also contain the optimiser's state.
        near = [file for folder in (path, *path.parents[:2]) for file in sorted(folder.glob("best*.safetensors"))]
        near += [file for file in sorted(path.glob("*")) if file.suffix in (".safetensors", ".pth", ".pt", ".npz")]
        hint = f"; did you mean {near[0]} ?" if near else ""
        raise ParityError(
            f"{path} is not an Orbax checkpoint of weights, or is damaged ({orbax_reason(error)}){hint}"
        ) from error


def read_orbax_tree(path: str | os.PathLike) -> dict[str, Any] | None:
    """The nested dict of numpy arrays in another program's Orbax directory, such as Linen's parameters; None if none.

    It is that directory's, or that of its only item, as `CheckpointManager` names them (a step, then "default").
    """
    with needs_extra("train", f"reading {path} with Orbax"):
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

    path = Path(path).absolute()
    for _ in range(3):
        if (path / "_METADATA").is_file():
            break
        inner = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
        if len(inner) != 1:
            return None
        path = inner[0]
    try:
        require_regular_tree(path)
        with quiet_abandoned_work(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(path)
        return jax.tree.map(np.asarray, tree)
    except Exception:  # the caller has an error of its own
        return None
