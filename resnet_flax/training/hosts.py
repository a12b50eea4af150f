"""What the hosts of one run know of each other: who is ready, and who has stopped and why.

Of itself JAX leaves the others waiting for a host that has stopped, or aborts them with a C++ trace. Here a thread on
each host reads what the others have put into the key-value store of JAX's coordination service, and ends the process
with one sentence.

Read from JAX 0.10.2, and not documented: the store and who this is among how many
(`jax._src.distributed.global_state`; `test_the_store` in tests/resnet_flax/training/test_hosts.py fails first if it
changes), the text of the errors that a collective raises
when a peer is gone, and that `jax.distributed.initialize` hides all GPUs but one under SLURM and Open MPI, by setting
the option `jax_cuda_visible_devices` (a test in tests/resnet_flax/training/test_sharding.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator
from typing import Any, NoReturn

import jax

from parity.errors import UsageError, printable
from resnet_flax.errors import UserError

JOIN_SECONDS = 600  # for all hosts to start; JAX's default is 300
SILENT_SECONDS = 30.0  # without a sign of life, until a host counts as stopped
BEAT_SECONDS = 1.0  # between two signs of life
SEEN_SECONDS = 10.0  # for the others to read why this host stops
PREFIX = "resnet_flax/"
LOST = 3  # the exit status where a host is gone; 2 is a mistake that the user can correct

# Of the errors that a collective or the coordination service raises on the hosts that are left.
COLLATERAL = re.compile(r"Gloo|NCCL|coordination|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (closed|reset)|barrier", re.I)
# What JAX's C++ prints about a host that is gone, and what follows an abort.
TRACE = re.compile(
    rb"^[WEF]\d{4} .*(coordination|preemption|client\.h|Terminating process)|^\*\*\* Check failure|^ +@ +0x"
    rb"|^Additional GRPC|^:UNKNOWN:|^The tasks have crashed|^\[Gloo\]"
)


class Hosts:
    """This host among the others of the run, which have all joined.

    Args:
        store: JAX's key-value store.
        index, count: this host, and how many there are.

    Attributes:
        way_on: what to do once the reason is removed.
    """

    def __init__(self, store: Any, index: int, count: int):
        self.index, self.count = index, count
        self.way_on = "start all hosts again"
        self._status = LOST
        self._store = store
        self._ending = threading.Lock()
        self._errors = _Errors()
        self._left = threading.Event()
        self._abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._thread = threading.Thread(target=self._watch, name="hosts", daemon=True)

    def start(self) -> None:
        """Begins to watch the others."""
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort)  # Python's own would run after the abort
        self._thread.start()

    def agree(self, value: Any) -> Any:
        """Waits until every host has come here, however long that takes; returns the `value` (JSON) of the first."""
        self._set(f"ready/{self.index}", json.dumps(value))
        while len(ready := self._all("ready/")) < self.count:
            time.sleep(BEAT_SECONDS / 10)
        return json.loads(ready[0])

    def stop(self, error: BaseException, *, shown: bool = False) -> NoReturn:
        """Ends this process, and with it all others, because of `error`; `shown` if its message has been printed."""
        if isinstance(error, UsageError):
            status, message = 2, str(error)
        elif isinstance(error, KeyboardInterrupt):
            status, message = 130, "it was interrupted"
        else:
            if COLLATERAL.search(str(error)):  # another host has stopped: the watch finds out which
                time.sleep(SILENT_SECONDS + 5 * BEAT_SECONDS)
            status, message = LOST, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._errors.write("".join(traceback.format_exception(error)))
        with contextlib.suppress(Exception):
            self._set(f"stopped/{self.index}", json.dumps([status, message]))
        self._ending.acquire()  # for good: only one thread ends the process
        self._status = status
        if not shown:
            self._errors.write("interrupted\n" if status == 130 else f"error: {message}\n")
        until = time.monotonic() + SEEN_SECONDS
        with contextlib.suppress(Exception):  # the first host may be gone, and its store with it
            while (
                time.monotonic() < until and len(self._all("seen/").keys() | self._all("stopped/").keys()) < self.count
            ):
                time.sleep(BEAT_SECONDS / 10)
        gc.collect()  # ends the processes that read images
        self._exit(status)

    def leave(self) -> None:
        """Parts from the others at the orderly end of a run; waits for them."""
        with contextlib.suppress(Exception):
            self._set(f"stopped/{self.index}", json.dumps([0, ""]))
        jax.distributed.shutdown()
        self._left.set()
        self._thread.join()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)
        self._errors.close()

    def _watch(self) -> None:
        beat, heard = 0, dict.fromkeys(range(self.count), (0, time.monotonic()))
        while not self._left.wait(BEAT_SECONDS):
            self._errors.show()
            try:
                beat += 1
                self._set(f"alive/{self.index}", str(beat))
                stopped = {host: json.loads(text) for host, text in self._all("stopped/").items()}
                alive = self._all("alive/")
            except Exception:  # the store is the first host's
                if self._left.wait(2 * BEAT_SECONDS):
                    return
                self._lost(0)
            now = time.monotonic()
            for host in set(range(self.count)) - {self.index}:
                if host in stopped:
                    if stopped[host][0]:
                        self._follow(host, *stopped[host])
                    continue
                if (latest := int(alive.get(host, 0))) != heard[host][0]:
                    heard[host] = (latest, now)
                elif now - heard[host][1] > SILENT_SECONDS:
                    self._lost(host)

    def _lost(self, host: int) -> None:
        self._follow(host, LOST, "it is gone, or the network to it, without a message")

    def _follow(self, host: int, status: int, message: str) -> None:
        """Ends this process because another host has stopped."""
        if not self._ending.acquire(blocking=False):
            self._left.wait()  # the main thread is ending it
            return
        self._status = 2 if status == 2 else LOST
        self._errors.write(f"error: host {host} has stopped: {message}; {self.way_on}\n")
        with contextlib.suppress(Exception):
            self._set(f"seen/{self.index}", "")
        self._exit(self._status)

    def _aborted(self, number: int) -> None:
        """The handler of SIGABRT: JAX has found, before the watch, that the first host is gone."""
        if self._ending.acquire(blocking=False):  # or it is ending already
            host = "host 0" if self.index else "another host"
            self._errors.write(f"error: {host} has stopped: it is gone, without a message; {self.way_on}\n")
        self._exit(self._status)

    def _exit(self, status: int) -> NoReturn:
        sys.stdout.flush()
        os._exit(status)  # the usual way out would wait for the others

    def _set(self, key: str, value: str) -> None:
        self._store.key_value_set(PREFIX + key, value, allow_overwrite=True)

    def _all(self, folder: str) -> dict[int, str]:
        rows = self._store.key_value_dir_get(PREFIX + folder)
        return {int(key.rpartition("/")[2]): value for key, value in rows}


class _Errors:
    """The error output of this process, without what JAX's C++ prints about a host that is gone.

    It goes through a file: who writes to a pipe would wait for the Python thread that reads it.
    """

    def __init__(self):
        sys.stderr.flush()
        self._screen = os.dup(2)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._lock = threading.Lock()
        os.dup2(self._file.fileno(), 2)
        self._shown = 0

    def show(self) -> None:
        """Shows the lines that have been written since."""
        with self._lock:
            content = os.pread(self._file.fileno(), 2**20, self._shown)
            whole = content[: content.rfind(b"\n") + 1]
            self._shown += len(whole)
            lines = [line for line in whole.splitlines(keepends=True) if not TRACE.search(line)]
            with contextlib.suppress(OSError):
                os.write(self._screen, b"".join(lines))

    def write(self, text: str) -> None:
        self.show()
        with contextlib.suppress(OSError):
            os.write(self._screen, printable(text).encode(errors="backslashreplace"))

    def close(self) -> None:
        sys.stderr.flush()
        self.show()
        os.dup2(self._screen, 2)
        os.close(self._screen)
        self._file.close()


@contextlib.contextmanager
def joined(distributed: bool) -> Generator[Hosts | None]:
    """With `distributed`, joins the other processes of this job; an error in the context ends all of them.

    Under SLURM and Open MPI JAX assumes one process per GPU and hides the other GPUs. Here a process uses all GPUs of
    its host, unless JAX_LOCAL_DEVICE_IDS or CUDA_VISIBLE_DEVICES selects some.

    Raises:
        UserError: if the others cannot be joined.
    """
    if not distributed:
        yield None
        return
    hosts = _joined()
    try:
        yield hosts
    except BaseException as error:
        hosts.stop(error)
    hosts.leave()


def end_others(error: UsageError) -> NoReturn:
    """Ends this process with status 2, and the others of its job, because of an error in its command line.

    The others would wait `JOIN_SECONDS` for it. So it joins them, which takes until all have started, and stops.
    """
    print(f"error: {printable(error)}", file=sys.stderr, flush=True)
    with contextlib.suppress(UserError):  # there are no others
        _joined().stop(error, shown=True)
    sys.exit(2)


def _joined() -> Hosts:
    """This host among the others, whom it waits for and begins to watch; raises as `joined`."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own runs once JAX's C++ has returned
    try:
        _initialize()
    finally:
        signal.signal(signal.SIGINT, handler)
    from jax._src.distributed import global_state  # jax.process_index() would wait for the devices of all hosts

    hosts = Hosts(global_state.client, global_state.process_id, global_state.num_processes)
    hosts.start()
    return hosts


def _initialize() -> None:
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
            initialization_timeout=JOIN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed could not join the other processes within {JOIN_SECONDS} seconds: "
            f"{' '.join(str(error).split())[:200]}; outside SLURM, Open MPI and Kubernetes, set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", os.environ.get("JAX_CUDA_VISIBLE_DEVICES", "all"))
