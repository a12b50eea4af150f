"""Stopping in an orderly way: SIGTERM, Ctrl-C, and a preempted host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """While in its context, SIGTERM and the first Ctrl-C ask for a stop; a Ctrl-C after that ends the process at once.

    At once, like a kill: an exception would surface anywhere, in Orbax's threads and JAX's callbacks too. What a kill
    leaves behind, a resumed run can deal with.

    With several hosts JAX's own preemption service listens for SIGTERM on each of them, and lets all stop behind the
    same step.

    Args:
        say: where to acknowledge the first: the step may still be compiling.
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
            self._say("stopping behind this step, and saving; Ctrl-C once more stops at once, without")
            self._signal = number
        elif number == signal.SIGINT:
            self._say("interrupted")
            os._exit(128 + number)

    def requested(self, step: int) -> bool:
        """Whether to stop behind this step; the same answer on every host."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self._signal or 0)
