"""What a command changes of its own process, for good."""

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import jax

LARGE = 1 << 20  # bytes


def keep_compiled_programs() -> None:
    """JAX finds the programs of earlier checks in `$XDG_CACHE_HOME/parity`, or `~/.cache/parity`.

    Unless JAX_COMPILATION_CACHE_DIR is set, or nothing can be written there.
    """
    if jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home directory
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parity"
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            jax.config.update("jax_compilation_cache_dir", str(directory))


def return_freed_memory() -> None:
    """Makes glibc give large blocks back when they are freed, which it otherwise keeps up to 32 MB each.

    A check frees whole networks and all their activations, in several threads: what each thread keeps adds up.
    """
    mmap_threshold = -3  # of mallopt(3); once it is set, glibc no longer raises it
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(mmap_threshold, LARGE)
