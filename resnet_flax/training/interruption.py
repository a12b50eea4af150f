"""Stopping a run cleanly on SIGTERM, Ctrl-C, or the preemption of a host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """In this context, SIGTERM and the first Ctrl-C request a stop; a Ctrl-C after that ends the process immediately.

    Immediately means like a kill: an exception could surface anywhere, also in Orbax's threads and JAX's callbacks. A
    run can be resumed after a kill.

    With several hosts, JAX's preemption service listens for SIGTERM on each of them, and all stop after the same step.

    Args:
        say: prints the acknowledgement of the first signal: the step may still be compiling.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._signal: int | None = None
        self._several = jax.process_count() > 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in () if self._several else (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._say("Finishing this step, then saving. Press Ctrl-C again to quit without saving.")
            self._signal = number
        elif number == signal.SIGINT:
            self._say("interrupted")
            os._exit(128 + number)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; the same on every host."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the number of the signal, as in a shell."""
        return 128 + (self._signal or 0)
