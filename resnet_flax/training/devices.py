"""The devices of a run: which ones, how many hosts, and where compiled programs are kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path

import jax
from jax.sharding import Mesh

from resnet_flax.cache import cache_directory
from resnet_flax.errors import UserError
from resnet_flax.training.config import RunConfig
from resnet_flax.training.sharding import data_mesh

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def open_devices(config: RunConfig) -> Mesh:
    """Chooses the platform, joins the other processes if asked to, and lays out all devices.

    Has to come before anything that touches a device.

    Raises:
        UserError: if there is no such device, or the other processes cannot be joined.
    """
    use_compilation_cache()
    if config.device == "cpu" or (config.device == "auto" and not any(Path("/dev").glob("nvidia[0-9]*"))):
        keep_freed_memory()
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if config.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda", "cpu": "cpu"}[config.device])
    if config.distributed:
        _join()
    try:
        return data_mesh()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no GPU plugin at all
        if config.device == "gpu":
            raise UserError(
                "--device gpu, but JAX finds no GPU here; install the extra cuda13 or cuda12 and check "
                "nvidia-smi, or leave --device away"
            ) from error
        raise UserError(f"JAX finds no device: {' '.join(str(error).split())[:200]}") from error


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, where the C library is glibc.

    On a CPU, XLA allocates a step's activations anew in every step. By default glibc takes blocks of that size from the
    operating system and hands them back, and every page of them is then cleared and mapped again (docs/cpu.md has what
    that costs). Has to come before JAX starts its threads: each would take an arena of its own, whose blocks of more
    than 64 MB come from the operating system all the same.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # of mallopt(3)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
                mallopt(parameter, value)


def _join() -> None:
    """JAX asks SLURM, Open MPI or Kubernetes; elsewhere these variables say what they would.

    Under the first two it takes each process for that of one GPU and hides the others from it. Here a process has all
    of its host's, unless JAX_LOCAL_DEVICE_IDS or CUDA_VISIBLE_DEVICES says which.
    """
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count), process_id=None if index is None else int(index)
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed could not join the other processes: {' '.join(str(error).split())[:200]}; under SLURM, "
            "Open MPI and Kubernetes nothing needs to be set, elsewhere JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID do"
        ) from error
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", os.environ.get("JAX_CUDA_VISIBLE_DEVICES", "all"))


def use_compilation_cache() -> None:
    """Keeps compiled programs in `cache_directory("jax")`, or where JAX_COMPILATION_CACHE_DIR says."""
    if jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        return
    with contextlib.suppress(OSError):  # a home directory that cannot be written to costs compile time, not the run
        directory = cache_directory("jax")
        with tempfile.TemporaryFile(dir=directory):
            jax.config.update("jax_compilation_cache_dir", str(directory))


def describe(mesh: Mesh) -> str:
    """ "8 x NVIDIA H100 on 2 hosts"."""
    kind = mesh.devices.flat[0].device_kind
    kind = "CPU" if kind == "cpu" else kind
    hosts = jax.process_count()
    return f"{mesh.size} x {kind}" + (f" on {hosts} hosts" if hosts > 1 else "")


def memory_in_use() -> str:
    """The first local device's peak memory, "31.2/80.0 GB"; empty where it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return ""
    return f"{stats['peak_bytes_in_use'] / 1e9:.1f}/{stats['bytes_limit'] / 1e9:.1f} GB"
