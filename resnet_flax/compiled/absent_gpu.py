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

from resnet_flax.compiled.cards import CARDS, Card
from resnet_flax.errors import UserError
from resnet_flax.training.sharding import AXIS


def card_of(target: str) -> Card:
    """The card of a target such as "h100:1x8".

    Raises:
        UserError: for an unknown target.
    """
    name, _, layout = target.partition(":")
    if name not in CARDS or not re.fullmatch(r"[1-9]\d{0,2}x[1-9]\d?", layout or "1x1"):
        raise UserError(
            f"no target {target!r}; use {', '.join(CARDS)}, or add hosts x GPUs, as in "
            f"{name if name in CARDS else 'h100'}:1x8"
        )
    return CARDS[name]


def hosts_of(target: str) -> int:
    """The number of hosts of a valid target."""
    layout = target.partition(":")[2]
    return int(layout.split("x")[0]) if layout else 1


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
    card = card_of(target)
    name, _, layout = target.partition(":")
    try:
        with _without_driver():
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name=name, target_config=card.target_config, topology=f"{layout or '1x1'}x1"
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"compiling for {target} needs JAX's CUDA plugin: pip install 'resnet-flax[cuda13]' "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    return Mesh(np.array(topology.devices), (AXIS,))
