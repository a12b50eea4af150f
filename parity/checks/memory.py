"""Memory that has been freed, given back to the operating system, where the C library is glibc."""

import contextlib
import ctypes
import sys

LARGE = 1 << 20  # bytes


def give_back_freed_memory() -> None:
    """Gives back what has been freed so far: after the compiler, hundreds of megabytes in small pieces."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def keep_little_freed_memory() -> None:
    """Makes this process give large blocks back when they are freed, and keep small ones in one place.

    A check frees whole networks and all their activations, and the compiler's data, in several threads: by default each
    thread keeps what it has freed, blocks of up to 32 MB included. Call it before there are threads.
    """
    mmap_threshold, arena_max = -3, -8  # of mallopt(3); once the former is set, glibc no longer raises it
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_threshold, LARGE)
            mallopt(arena_max, 1)
