"""Orbax directories of weights: written whole, read back; and what Orbax says of a failure, in one line."""

import errno
import functools
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.conversion.files import require_readable
from parity.errors import ParityError, needs_extra


@functools.cache
def leave_out_abandoned_work() -> None:
    """From now on nothing is printed of the reads and writes that Orbax abandons when one of them fails.

    There are hundreds, and each would print a traceback: those that fail as well, and, some long after, those that
    find their event loop closed. Orbax raises the first one's error all the same.
    """
    for logger, said in (
        ("asyncio", "exception was never retrieved"),
        ("absl", "Thread.run() raised an exception"),
        ("absl", "in background save thread"),
        ("absl", "Checkpointer failed"),
        ("absl", "Save Finalize thread"),
    ):
        logging.getLogger(logger).addFilter(lambda record, said=said: said not in record.getMessage())
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        code = getattr(unraisable.object, "cr_code", None)
        if not closed and not (code and "orbax" in code.co_filename):
            shown(unraisable)

    sys.unraisablehook = hook


def orbax_reason(error: Exception) -> str:
    """What Orbax and TensorStore say, without the whole specification of the array that they append."""
    if (full := os.strerror(errno.ENOSPC)) in str(error):
        return full
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()).partition(" See full TensorStore details")[0][:200].rstrip(".")


def require_orbax_name(path: Path) -> None:
    """Raises ParityError for a path that Orbax would write to and could not read: it takes these for a pattern's."""
    if found := sorted(set("*?[") & set(str(path.absolute()))):
        raise ParityError(
            f"Orbax cannot keep a checkpoint under a name with {' or '.join(found)}: {path}; choose another"
        )


def write_orbax(path: str | os.PathLike, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays and JSON metadata as an Orbax checkpoint directory, whole or not at all.

    Raises:
        ParityError: if it cannot be written.
    """
    with needs_extra("train", f"writing {path} with Orbax"):
        import orbax.checkpoint as ocp

    leave_out_abandoned_work()
    path = Path(path).absolute()
    require_orbax_name(path)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(dict(metadata)))
            checkpointer.save(path, args=args)
    except Exception as error:
        for leftover in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        raise ParityError(f"cannot write {path}: {orbax_reason(error)}") from error


def read_orbax(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nested dict of numpy arrays and the metadata that `write_orbax` wrote.

    Raises:
        ParityError: if the directory is not such a checkpoint, or is damaged.
    """
    with needs_extra("train", f"reading {path} with Orbax"):
        import orbax.checkpoint as ocp

    leave_out_abandoned_work()
    path = Path(path).absolute()
    require_readable(path)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "metadata")) as checkpointer:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(), metadata=ocp.args.JsonRestore())
            restored = checkpointer.restore(path, args=args)
        return restored["state"], json.loads(json.dumps(restored["metadata"]))
    except Exception as error:
        # The directory of a training run, or one of its checkpoints, which hold optimiser and all?
        near = [file for folder in (path, *path.parents[:2]) for file in sorted(folder.glob("best*.safetensors"))]
        hint = f"; did you mean {near[0]} ?" if near else ""
        raise ParityError(
            f"{path} is not an Orbax checkpoint of weights, or is damaged ({orbax_reason(error)}){hint}"
        ) from error
