"""Reads batches ahead of the consumer, in threads or worker processes, and cleans up after them.

The one module that uses Grain. What follows was read from Grain 0.2.18, and `tests/resnet_flax/data/test_stream.py`
fails first if it changes: its worker processes are started by the first `next` and read absl flags
then, and its clean-up at interpreter exit prints tracebacks if anything is left to clean up.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import gc
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import weakref
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import numpy as np

from parity.errors import needs_extra
from resnet_flax.data.decoding import CorruptImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import jax

    from resnet_flax.data.pipeline import Batch, EvaluationBatches, TrainingBatches

logger = logging.getLogger("resnet_flax.data")


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shut_down(running: list) -> None:
    running.pop().close()
    gc.collect()


@functools.cache
def _collect_at_exit() -> None:
    """Frees at interpreter exit what closed streams have left, before Grain's own clean-up finds it."""
    atexit.register(gc.collect)


@contextlib.contextmanager
def _signals_blocked():
    """Threads and processes started in this context never receive SIGINT, SIGTERM or SIGHUP.

    Ctrl-C and SIGHUP are sent to all processes of a terminal's job, SLURM's SIGTERM to all of a job step: a worker that
    one ended would end the run too, before it could finish its step and save.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()  # a process too; it unblocks the first two in the thread that starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _flags_readable():
    """Lets Grain read its own absl flags in a program that has not parsed any, which is an error otherwise."""
    from absl import flags

    marked = [flags.FLAGS[name] for name in flags.FLAGS if name.startswith("grain_")]
    before = [flag.present for flag in marked]
    try:
        for flag in marked:
            flag.present = 1
        yield
    finally:
        for flag, present in zip(marked, before, strict=True):
            flag.present = present


@contextlib.contextmanager
def _starting_workers():
    with _signals_blocked(), _flags_readable():
        yield


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker process: exits when the parent process has gone, even if killed; it would otherwise wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BatchStream:
    """Iterates over `batches` in order, reading ahead; `close()` also runs at interpreter exit.

    Args:
        batches: position -> batch, with a count and a reader.
        workers: processes that read; 0 uses threads.

    Raises:
        CorruptImage: while iterating, if more images are damaged than the reader allows.
    """

    def __init__(self, batches: TrainingBatches | EvaluationBatches, workers: int):
        with needs_extra("train", "reading batches"):
            import grain

        _collect_at_exit()
        in_memory = batches.reader.images is not None
        # Decoding and resizing release the interpreter lock: two threads per process, if there are cores for them.
        threads = 1 if in_memory or 2 * workers > cores() else 2
        dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, 2 * threads))
        if workers and not in_memory:
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options, _end_with_parent)
        self._starting = _starting_workers if workers and not in_memory else contextlib.nullcontext
        self._skip_corrupt, self._left = batches.reader.skip_corrupt, batches.count
        self._damaged: set[int] = set()
        self._running = [iter(dataset)]
        self._finalizer = weakref.finalize(self, _shut_down, self._running)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if not self._left:
            self.close()
        if not self._running:
            raise StopIteration
        self._left -= 1
        with self._starting():  # the first `next` starts the worker processes
            batch = next(self._running[0])
        for index, name, reason in batch.pop("damaged"):
            if index in self._damaged:
                continue
            self._damaged.add(index)
            if len(self._damaged) > self._skip_corrupt:
                self.close()
                raise CorruptImage(name, reason, self._advice())
            logger.warning(
                "skipped damaged image %s: %s (%d of at most %d)",
                name,
                reason,
                len(self._damaged),
                self._skip_corrupt,
            )
        # Copied out of Grain's shared memory, which is freed with its wrapper while JAX on a CPU would still use it.
        return {name: x if type(x) is np.ndarray else np.array(x) for name, x in batch.items()}

    def _advice(self) -> str:
        if self._skip_corrupt:
            return f"more damaged images than --skip-corrupt {self._skip_corrupt}; repair them, or raise it"
        return "repair or remove it, or skip up to N such images with --skip-corrupt N"

    def close(self) -> None:
        """Stops the threads and worker processes."""
        if self._finalizer.detach():
            self._running.pop().close()  # without gc.collect, which takes a second in a large program


def prefetch_to_device(
    batches: Iterable[Batch], sharding: jax.sharding.Sharding, depth: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Transfers up to `depth` batches ahead to the devices while the caller computes.

    Each array is this process's part of the global array, which `sharding` splits along the first axis.
    """
    import jax

    queue: collections.deque = collections.deque()
    iterator = iter(batches)
    while True:
        for batch in itertools.islice(iterator, depth - len(queue)):
            queue.append(
                {name: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for name, x in batch.items()}
            )
        if not queue:
            return
        yield queue.popleft()
