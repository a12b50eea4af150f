"""What Orbax says of files that it cannot read, in a line."""

import errno
import functools
import logging
import os
import sys
from typing import Any


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
