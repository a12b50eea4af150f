"""Stopping a run cleanly on SIGTERM, SIGHUP, Ctrl-C, or the preemption of a host."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """In this context, SIGTERM, SIGHUP and the first Ctrl-C request a stop; another Ctrl-C ends the process at once.

    At once means like a kill: an exception could surface anywhere, also in Orbax's threads and JAX's callbacks. A
    run can be resumed after a kill.

    With several hosts, JAX's preemption service listens for SIGTERM on each of them, and all stop after the same step;
    the other signals become a SIGTERM. A SIGHUP that is ignored, as under nohup, stays ignored.

    Args:
        say: prints the acknowledgement of the first signal: the step may still be compiling.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._signal: int | None = None
        self._several = jax.process_count() > 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self  # only there can Python handle signals
        for number in (signal.SIGINT, signal.SIGHUP, *(() if self._several else (signal.SIGTERM,))):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._signal is None:
            self._say("Finishing this step, then saving. Press Ctrl-C again to quit without saving.")
            self._signal = number
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT:
            self._say("interrupted")
            os._exit(128 + number)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; the same on every host."""
        if not self._several:
            return self._signal is not None
        if stop := multihost_utils.reached_preemption_sync_point(step):
            self._signal = self._signal or signal.SIGTERM
        return stop

    @property
    def exit_status(self) -> int:
        """128 + the number of the signal, as in a shell."""
        return 128 + (self._signal or 0)


def _leave_terminal() -> None:
    """Lets output to a terminal that has been closed go nowhere: writing there fails."""
    for stream in (1, 2):
        if os.isatty(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
