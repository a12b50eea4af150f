"""Checkpoints from which a run goes on bit for bit: saved in the background, checked when read."""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from parity.conversion.orbax import leave_out_abandoned_work, orbax_reason
from parity.errors import needs_extra
from resnet_flax.errors import UserError
from resnet_flax.training.memory import is_out_of_memory
from resnet_flax.training.sharding import abstract
from resnet_flax.training.state import TrainState

with needs_extra("train", "training"):
    import orbax.checkpoint as ocp

logger = logging.getLogger("resnet_flax.training")


@jax.jit
def fingerprint(state: TrainState) -> jax.Array:
    """A uint32 that changes with any single bit of the state, computed where the state lies.

    Orbax reads an array with a flipped bit without complaint.
    """
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}

    def words(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]).sum(dtype=jnp.uint32)

    sums = jnp.stack([words(leaf) for leaf in jax.tree.leaves(state)])
    return (sums * (2 * jnp.arange(len(sums), dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)


def _is_shortage(error: Exception) -> bool:
    """Whether reading failed for want of memory, rights or file handles, which says nothing about the file."""
    shortages = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in shortages or is_out_of_memory(error)


class Checkpoints:
    """The last few states of a run, one directory per step, each complete or not there at all.

    Args:
        directory: on a file system that all hosts share.
        keep: how many to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = directory.absolute()
        leave_out_abandoned_work()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "progress"))
        self._pending: int | None = None

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @property
    def _whole(self) -> list[int]:
        return [step for step in self.steps if step != self._pending]

    def last_whole(self) -> int | None:
        """The last step whose checkpoint is complete; waits for the one that is being written."""
        with contextlib.suppress(UserError):
            self.wait()
        return max(self._whole, default=None)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Begins to write the state and returns; `progress` is whatever JSON holds.

        Raises:
            UserError: if this or the previous checkpoint cannot be written, say because the disk is full.
        """
        step = int(state["step"])
        if step in self.steps:
            return
        self.wait()
        self._pending = step
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave({**progress, "fingerprint": int(fingerprint(state))}),
        )
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits until what was begun has been written; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._pending = None

    def _failure(self, error: Exception) -> UserError:
        whole = self._whole
        intact = (
            f"the earlier ones are intact (the last is of step {whole[-1]})" if whole else "there is no earlier one"
        )
        return UserError(
            f"the checkpoint of step {self._pending} could not be written to {self.directory}: {orbax_reason(error)}; "
            f"{intact}; make room and go on with --resume"
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The last complete state and its progress, laid out as `like`; None if there is none.

        Damaged ones are passed over and, where an older one can be read, moved aside, with a warning.

        Raises:
            UserError: if none of those there can be read; they are left as they are.
        """
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract(like)), progress=ocp.args.JsonRestore())
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                restored: Any = self._manager.restore(step, args=items)
                if int(fingerprint(restored.state)) == restored.progress["fingerprint"]:
                    self._move_aside(damaged)
                    return restored.state, restored.progress
                damaged[step] = "its contents have changed since it was written"
            except Exception as error:  # whatever Orbax and its storage make of a damaged file
                if _is_shortage(error):
                    raise
                damaged[step] = f"it cannot be read ({orbax_reason(error)})"
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"every checkpoint in {self.directory} is damaged, or not of this network ({reasons}); start anew "
                "elsewhere"
            )
        return None

    def _move_aside(self, damaged: dict[int, str]) -> None:
        for step, reason in damaged.items():
            logger.warning("skipped the damaged checkpoint of step %d (now damaged-%d): %s", step, step, reason)
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(self.directory / f"damaged-{step}")
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
            self._manager.reload()

    def close(self) -> None:
        """Waits as `wait` does, and ends the writing threads."""
        self.wait()
        self._manager.close()
