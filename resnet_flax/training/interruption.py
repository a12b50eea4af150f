"""Stopping in an orderly way: SIGTERM, Ctrl-C, and a preempted host."""

from __future__ import annotations

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """While in its context, SIGTERM and the first Ctrl-C ask for a stop; the second Ctrl-C is the usual one.

    With several hosts JAX's own preemption service listens for SIGTERM on each of them, and lets all stop behind the
    same step.
    """

    def __init__(self):
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
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self, step: int) -> bool:
        """Whether to stop behind this step; the same answer on every host."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self._signal or 0)
