"""Which batch size would fit into memory when one does not."""

from __future__ import annotations

from typing import Any

import jax

from resnet_flax.errors import UserError
from resnet_flax.training.setup import Setup
from resnet_flax.training.sharding import abstract


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA could not allocate the memory that a program needs; by the status code in its message."""
    return "RESOURCE_EXHAUSTED" in str(error)


def batch_that_fits(batch_size: int, parts: int, *, fixed: int, per_batch: int, limit: int) -> int:
    """The largest multiple of `parts` whose step fits into `limit` bytes; 0 if none does.

    Args:
        batch_size: one that needs `per_batch` bytes on each device, besides the `fixed` bytes of the state.
        parts: devices times micro-batches.
        limit: bytes of a device, of which a tenth is left free for fragmentation.
    """
    room = 0.9 * limit - fixed
    return max(int(room / per_batch * batch_size) // parts * parts, 0)


def out_of_memory(setup: Setup, state: Any, batch: Any) -> UserError:
    """The error for a step that did not fit, with XLA's figure for the memory it needs."""
    config = setup.config
    message = f"a batch of {config.batch_size} does not fit in the memory of {setup.mesh.devices.flat[0].device_kind}"

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    memory = setup.train_step.lower(*abstract((state, batch))).compile().memory_analysis()
    parts = setup.mesh.size * config.optimizer.accumulate
    fits = 0
    if limit and memory is not None:
        fixed = sum(x.nbytes for x in jax.tree.leaves(state))
        fits = batch_that_fits(config.batch_size, parts, fixed=fixed, per_batch=memory.temp_size_in_bytes, limit=limit)
        message += f" ({(fixed + memory.temp_size_in_bytes) / 1e9:.1f} of {limit / 1e9:.1f} GB)"
    if fits:
        return UserError(f"{message}; use --batch-size {fits}, or --accumulate")
    return UserError(f"{message}; use a smaller --batch-size, --dtype bfloat16, or --accumulate")
