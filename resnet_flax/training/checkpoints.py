"""Checkpoints from which a run resumes bit for bit: saved in the background, verified when read.

Together with parity.conversion.orbax the one place that uses Orbax (read from 0.12.8). `CheckpointManager` and its
arguments are documented; the texts of its errors are not, and only shown.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from parity.conversion.files import require_regular_tree
from parity.conversion.orbax import collect_abandoned_work, orbax_reason, quiet_abandoned_work
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
    """A uint32 that changes with any single bit of the state, computed on its devices.

    Orbax does not notice a flipped bit in an array.
    """
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}

    def words(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]).sum(dtype=jnp.uint32)

    sums = jnp.stack([words(leaf) for leaf in jax.tree.leaves(state)])
    return (sums * (2 * jnp.arange(len(sums), dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)


def _is_shortage(error: Exception) -> bool:
    """Whether reading failed for lack of memory, permissions or file handles, and the file may be intact."""
    shortages = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in shortages or is_out_of_memory(error)


class Checkpoints:
    """The last states of a run, one directory per step; each is complete or absent.

    A context manager; leaving it closes the checkpoints, and after an error nothing that fails then replaces it.

    Args:
        directory: on a file system that all hosts share.
        keep: the number of states to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = directory.absolute()
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(quiet_abandoned_work())
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "progress"))
        self._pending: int | None = None
        self._failed = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # the process ends, and the other hosts may never come to where this would wait for them
        with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError):
            self.close()

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @property
    def _whole(self) -> list[int]:
        return [step for step in self.steps if step != self._pending]

    def last_whole(self) -> int | None:
        """The step of the last complete checkpoint; waits for the one being written. None if there is none."""
        with contextlib.suppress(UserError):
            self.wait()
        return max(self._whole, default=None)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts to write the state in the background; `progress` is anything that JSON can hold.

        Raises:
            UserError: if this or the previous checkpoint cannot be written, for example because the disk is full.
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
        """Waits until the checkpoint in progress has been written; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._pending = None

    def _failure(self, error: Exception) -> UserError:
        self._failed = True
        collect_abandoned_work(error)
        whole = self._whole
        intact = (
            f"earlier checkpoints are intact (the last is step {whole[-1]})" if whole else "there is no earlier one"
        )
        return UserError(
            f"the checkpoint of step {self._pending} could not be written to {self.directory}: {orbax_reason(error)}; "
            f"{intact}; free some space and resume with --resume"
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The last complete state, with the structure and sharding of `like`, and its progress; None if there is none.

        Damaged checkpoints are skipped and, if an older one can be read, moved aside, with a warning.

        Raises:
            UserError: if there are checkpoints and none can be read; they are left as they are.
        """
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract(like)), progress=ocp.args.JsonRestore())
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                require_regular_tree(self.directory / str(step))
                restored: Any = self._manager.restore(step, args=items)
                if int(fingerprint(restored.state)) == restored.progress["fingerprint"]:
                    self._move_aside(damaged)
                    return restored.state, restored.progress
                damaged[step] = "its contents have changed since it was written"
            except Exception as error:  # Orbax and TensorStore raise errors of any type for a damaged file
                self._failed = True
                if _is_shortage(error):
                    raise
                damaged[step] = f"it cannot be read ({orbax_reason(error)})"
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"every checkpoint in {self.directory} is damaged, or of another network ({reasons}); start a new run "
                "in another --workdir"
            )
        return None

    def _move_aside(self, damaged: dict[int, str]) -> None:
        for step, reason in damaged.items():
            logger.warning("skipped the damaged checkpoint of step %d, now damaged-%d: %s", step, step, reason)
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(self.directory / f"damaged-{step}")
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints moved aside")
            self._manager.reload()

    def close(self) -> None:
        """Waits as `wait` does, and ends the writing threads."""
        try:
            self.wait()
            self._manager.close()
        finally:
            if self._failed:
                collect_abandoned_work()
            self._quiet.close()
