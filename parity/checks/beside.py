"""The reference's passes beside the candidate's: PyTorch computes in threads of its own while XLA compiles."""

import queue
import sys
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

from parity.checks.tolerance import Noise
from parity.sides.base import PLAIN, Arrangement, Reference, Run

WORKERS = 2  # each holds all that a pass gives

Pass = Callable[[Reference, Arrangement], Run]


class Task(Protocol):
    def result(self) -> Any:
        """What the function gave, or raised, once it has ended."""
        ...


class Begun(NamedTuple):
    """Passes that have begun, or begin when they are asked for.

    Attributes:
        oracle: gives the pass in float64, and `Noise` about it.
        plain: gives the pass in the precision under test.
        distances: {arrangement: gives what `Noise.distances` finds of its pass}.
    """

    oracle: Task
    plain: Task
    distances: dict[Arrangement, Task]


@contextmanager
def reference_passes(
    oracle: Reference, reference: Reference, run: Pass, arrangements: Collection[Arrangement], share: float
) -> Generator[Begun]:
    """Begins a pass of the oracle and, in each arrangement, of the reference, which may be the same.

    On leaving, no pass is running, and those that had not begun are dropped.
    """
    with _passes(reference, run) as (start, pass_of):

        def oracle_pass() -> tuple[Run, Noise]:
            its_run = pass_of(PLAIN) if reference is oracle else run(oracle, PLAIN)
            return its_run, Noise(its_run.groups(), scaled=("gradients", "activation_gradients"), share=share)

        def distances(arrangement: Arrangement) -> dict[str, dict[str, float]]:
            groups = pass_of(arrangement).groups()
            return first.result()[1].distances(groups)

        first = start(oracle_pass)
        plain = start(lambda: first.result()[0]) if reference is oracle else start(lambda: pass_of(PLAIN))
        yield Begun(first, plain, {one: start(partial(distances, one)) for one in arrangements})


@contextmanager
def _passes(
    side: Reference, run: Pass
) -> Generator[tuple[Callable[[Callable[[], Any]], Task], Callable[[Arrangement], Run]]]:
    """What starts a function, and a pass of the side or of a copy, whichever nothing else runs on.

    They run in threads that share PyTorch's own between them, if this is its network on a CPU; elsewhere a function is
    called when its result is asked for.
    """
    torch, twin = sys.modules.get("torch"), getattr(side, "twin", None)
    threads = torch.get_num_threads() if torch is not None and twin and str(side.device) == "cpu" else 1
    idle: queue.SimpleQueue[Reference] = queue.SimpleQueue()
    idle.put(side)

    def pass_of(arrangement: Arrangement) -> Run:
        one = idle.get()
        try:
            return run(one, arrangement)
        finally:
            idle.put(one)

    if torch is None or twin is None or threads < WORKERS:
        yield _WhenAsked, pass_of
        return
    workers = WORKERS
    try:
        idle.put(twin())
    except RuntimeError:  # the network keeps what a pass gave, which PyTorch does not copy
        workers = 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield lambda function: pool.submit(copy_context().run, function), pass_of
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # PyTorch gives the number set last to every thread that starts later


class _WhenAsked:
    def __init__(self, function: Callable[[], Any]):
        self._function = cache(function)

    def result(self) -> Any:
        return self._function()
