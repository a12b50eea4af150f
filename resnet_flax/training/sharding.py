"""How arrays are laid out on the devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from resnet_flax.errors import UserError

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or those given, along one axis called "data"."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split into one part per device."""
    return NamedSharding(mesh, P(AXIS))


def abstract(tree: Any, sharding: Sharding | None = None) -> Any:
    """`jax.ShapeDtypeStruct`s of the arrays in `tree`, with the given sharding or that of the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def check_batch_size(batch_size: int, devices: int, accumulate: int = 1) -> None:
    """Raises UserError unless the batch splits evenly over devices and micro-batches."""
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
        what = f"{devices} device{'s' * (devices > 1)}" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        below, above = batch_size // parts * parts, math.ceil(batch_size / parts) * parts
        choice = f"{below} or {above}" if below else f"{max(above, parts)}"
        raise UserError(f"a batch of {batch_size} cannot be split evenly over {what}; use --batch-size {choice}")
