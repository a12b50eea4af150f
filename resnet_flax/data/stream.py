"""Reads batches ahead of the consumer, in threads or in worker processes, and leaves nothing of them behind."""

from __future__ import annotations

import atexit
import collections
import contextlib
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
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shut_down(running: list) -> None:
    running.pop().close()
    gc.collect()


# At interpreter exit Grain's own clean-up prints tracebacks, so nothing of it may be left by then: this collects what
# closed streams have left, `_shut_down` what is closed even later.
atexit.register(gc.collect)


@contextlib.contextmanager
def _signals_blocked():
    """Threads and processes that begin in here never get SIGINT or SIGTERM.

    Ctrl-C reaches all processes of a terminal's job, and SLURM's SIGTERM all of a step: a worker that it ends takes the
    run with it, which wants to finish its step and save.
    """
    resource_tracker.ensure_running()  # which unblocks both in the thread that begins it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker process: it ends when its parent has gone, killed or not, and would otherwise wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BatchStream:
    """Reads `batches` in order ahead of the consumer; an iterator with `close()`, which also runs at interpreter exit.

    Raises `CorruptImage` while iterating if more images are damaged than the reader allows.
    """

    def __init__(self, batches: TrainingBatches | EvaluationBatches, workers: int):
        with needs_extra("train", "reading batches"):
            import grain
            from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only absl's own command lines parse
        in_memory = batches.reader.images is not None
        # Decoding and resizing let go of the interpreter lock: two threads a process, where there are cores for them.
        threads = 1 if in_memory or 2 * workers > cores() else 2
        dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, 2 * threads))
        if workers and not in_memory:
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options, _end_with_parent)
        self._beginning = _signals_blocked if workers and not in_memory else contextlib.nullcontext
        self._skip_corrupt, self._left = batches.reader.skip_corrupt, batches.count
        self._damaged: dict[int, str] = {}
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
        with self._beginning():  # of worker processes, by the first
            batch = next(self._running[0])
        for index, message in batch.pop("damaged"):
            if index not in self._damaged and len(self._damaged) < self._skip_corrupt:
                logger.warning("skipped (%d of at most %d) %s", len(self._damaged) + 1, self._skip_corrupt, message)
            self._damaged[index] = message
        if len(self._damaged) > self._skip_corrupt:
            self.close()
            last = list(self._damaged.values())[-1]
            if self._skip_corrupt:
                raise CorruptImage(f"more than the {self._skip_corrupt} damaged images allowed; the last: {last}")
            raise CorruptImage(f"{last}; mend or remove it, or allow for a few with --skip-corrupt N")
        # Out of Grain's shared memory, whose life ends with its wrapper: JAX on a CPU would keep pointing at it.
        return {name: x if type(x) is np.ndarray else np.array(x) for name, x in batch.items()}

    def close(self) -> None:
        """Stops the threads and worker processes."""
        if self._finalizer.detach():
            self._running.pop().close()  # and no collection: among a program's many objects it takes a second


def prefetch_to_device(
    batches: Iterable[Batch], sharding: jax.sharding.Sharding, depth: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Keeps `depth` batches on their way to the devices while the caller computes.

    Each array is this process's part of the global array that `sharding` lays out along the first axis.
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
