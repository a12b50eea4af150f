"""When a batch does not fit: which one would."""

from __future__ import annotations

from typing import Any

import jax

from resnet_flax.errors import UserError
from resnet_flax.training.setup import Setup
from resnet_flax.training.sharding import abstract


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA could not allocate what a program needs."""
    return "RESOURCE_EXHAUSTED" in str(error)


def batch_that_fits(batch_size: int, parts: int, *, fixed: int, per_batch: int, limit: int) -> int:
    """The largest multiple of `parts` whose step fits into `limit` bytes; 0 if none does.

    Args:
        batch_size: the one that needed `per_batch` bytes beside the `fixed` ones of the state, on each device.
        parts: devices times micro-batches.
        limit: bytes of a device. A tenth is left for fragmentation.
    """
    room = 0.9 * limit - fixed
    return max(int(room / per_batch * batch_size) // parts * parts, 0)


def out_of_memory(setup: Setup, state: Any, batch: Any) -> UserError:
    """The sentence for a step that did not fit, from what XLA says that the step needs."""
    config = setup.config
    message = f"a batch of {config.batch_size} does not fit into the memory of {setup.mesh.devices.flat[0].device_kind}"

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    memory = setup.train_step.lower(*abstract((state, batch))).compile().memory_analysis()
    parts = setup.mesh.size * config.optimizer.accumulate
    fits = 0
    if limit and memory is not None:
        fixed = sum(x.nbytes for x in jax.tree.leaves(state))
        fits = batch_that_fits(config.batch_size, parts, fixed=fixed, per_batch=memory.temp_size_in_bytes, limit=limit)
        message += f" ({(fixed + memory.temp_size_in_bytes) / 1e9:.1f} of {limit / 1e9:.1f} GB)"
    if fits:
        return UserError(f"{message}; --batch-size {fits} would, or as many --accumulate steps as make up for it")
    return UserError(f"{message}; use a smaller --batch-size, --dtype bfloat16, or --accumulate")
