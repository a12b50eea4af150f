"""The devices of a run: platform, hosts, memory, and the cache of compiled programs.

`prepare_process` and `open_devices` change the process: its environment, JAX's configuration and, on a CPU, malloc's.
They are for the train, evaluate and dry-run commands. `mallopt` is a function of glibc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import jax
from jax.sharding import Mesh

from resnet_flax.cache import use_compilation_cache
from resnet_flax.errors import UserError
from resnet_flax.training.config import RunConfig
from resnet_flax.training.sharding import data_mesh

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def prepare_process(config: RunConfig) -> None:
    """Chooses the platform and its settings, before JAX starts its threads. It changes the process for good."""
    use_compilation_cache()
    if config.device == "cpu" or (config.device == "auto" and not any(Path("/dev").glob("nvidia[0-9]*"))):
        keep_freed_memory()
    if config.deterministic and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if config.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda", "cpu": "cpu"}[config.device])


def open_devices(config: RunConfig) -> Mesh:
    """A mesh of all devices, after `prepare_process`. Call it before anything that uses a device.

    Raises:
        UserError: if there is no such device.
    """
    prepare_process(config)
    try:
        return data_mesh()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no GPU plugin at all
        if config.device == "gpu":
            raise UserError(
                "--device gpu, but JAX finds no GPU; install the extra cuda13 or cuda12 and check nvidia-smi, "
                "or remove --device"
            ) from error
        raise UserError(f"JAX finds no device: {' '.join(str(error).split())[:200]}") from error


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, if the C library is glibc.

    On a CPU, XLA allocates the activations of every step again. By default glibc returns blocks of that size to the
    operating system, so that all their pages are cleared and mapped again in the next step (docs/cpu.md has the cost).
    Call it before JAX starts its threads: each would get an arena of its own, whose blocks of more than 64 MB come from
    the operating system anyway.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # of mallopt(3)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
                mallopt(parameter, value)


def describe(mesh: Mesh) -> str:
    """ "8 x NVIDIA H100 on 2 hosts"."""
    kind = mesh.devices.flat[0].device_kind
    kind = "CPU" if kind == "cpu" else kind
    hosts = jax.process_count()
    return f"{mesh.size} x {kind}" + (f" on {hosts} hosts" if hosts > 1 else "")


def memory_in_use() -> str:
    """The peak memory of the first local device, "31.2/80.0 GB"; empty if it is not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return ""
    return f"{stats['peak_bytes_in_use'] / 1e9:.1f}/{stats['bytes_limit'] / 1e9:.1f} GB"
