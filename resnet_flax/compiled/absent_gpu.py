"""Compiling for GPUs that this machine does not have: XLA needs the CUDA plugin and a description of the device.

The optimised program has the kernels, memory traffic and memory of a step; `resnet_flax.compiled.program` parses it.
Nothing is run, and kernels are XLA's defaults, where with a device it would time the candidates.

Not documented: the options of `get_topology_desc` for CUDA, and the variable JAX_SKIP_CUDA_CONSTRAINTS_CHECK, both read
from JAX 0.10.2; benchmarks/gpu_compile.py fails first if they change.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from resnet_flax.errors import UserError
from resnet_flax.training.sharding import AXIS

# The text form of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto).
TARGETS = {
    "h100": """
        gpu_device_info {
            cuda_compute_capability { major: 9 }
            core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
            threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
        }
        platform_name: "CUDA"
        dnn_version_info { major: 9 minor: 28 }
        runtime_version { major: 13 }
        device_description_str: "NVIDIA H100 80GB HBM3"
    """,
}


def memory_size(target: str) -> int:
    """Bytes of memory of one GPU of the target."""
    return _number(target, "device_memory_size")


def memory_bandwidth(target: str) -> int:
    """Memory bandwidth of one GPU of the target, in bytes per second."""
    return _number(target, "memory_bandwidth")


def _number(target: str, name: str) -> int:
    (number,) = re.findall(rf"\b{name}: (\d+)", TARGETS[target.partition(":")[0]])
    return int(number)


@contextlib.contextmanager
def _without_driver() -> Generator[None]:
    """Lets JAX's CUDA plugin load where there is no driver."""
    name = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def absent_mesh(target: str) -> Mesh:
    """The GPUs of a target such as "h100" (one), "h100:1x8" or "h100:2x8" (hosts x GPUs each), along the axis "data".

    Raises:
        UserError: for an unknown target, or if JAX's CUDA plugin is not installed.
    """
    name, _, layout = target.partition(":")
    if name not in TARGETS or not re.fullmatch(r"[1-9]\d{0,2}x[1-9]\d?", layout or "1x1"):
        raise UserError(
            f"no target {target!r}; use {' or '.join(TARGETS)}, or add hosts x GPUs, as in {name or 'h100'}:1x8"
        )
    try:
        with _without_driver():
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name=name, target_config=TARGETS[name], topology=f"{layout or '1x1'}x1"
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"compiling for {target} needs JAX's CUDA plugin: pip install 'resnet-flax[cuda13]' "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    return Mesh(np.array(topology.devices), (AXIS,))
