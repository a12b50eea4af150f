"""Checkpoints: exact, whole or absent, and damage is noticed."""

import errno
import gc
import logging
import resource
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.errors import UserError
from resnet_flax.training.checkpoints import Checkpoints, fingerprint

# Where reading a damaged file fails, Orbax leaves coroutines behind that nobody waits for; gc brings it up here.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


def state_at(step):
    key = jax.random.key(step)
    return {
        "step": jnp.int32(step),
        "params": {"a.kernel": jax.random.normal(key, (3, 3, 64, 128)), "a.bias": jax.random.normal(key, (8,))},
        "statistics": {"n": jnp.int32(step)},
        "optimizer": (jnp.float32(0.1 * step), {"a.kernel": jax.random.uniform(key, (3, 3, 64, 128), jnp.bfloat16)}),
        "key": jax.random.key_data(key),
    }


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints of steps 2 and 3; 1 has been removed."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), {"best": step / 10})
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(directory):
    checkpoints = Checkpoints(directory, keep=2)
    try:
        return checkpoints.restore(state_at(0)), checkpoints.steps
    finally:
        checkpoints.close()
        gc.collect()


def largest_file(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def assert_state(restored, step):
    state, progress = restored
    assert progress["best"] == step / 10
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, state_at(step))


def test_the_last_is_restored_exactly_and_old_ones_go(saved):
    restored, steps = restore(saved)
    assert steps == [2, 3]
    assert_state(restored, 3)


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "empty")[0] is None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [flip_a_bit, truncate, lambda path: path.write_bytes(b""), lambda path: path.unlink()]
)
def test_a_damaged_one_is_skipped_with_a_warning(saved, damage, caplog):
    damage(largest_file(saved / "3"))
    with caplog.at_level(logging.WARNING):
        restored, steps = restore(saved)
    assert_state(restored, 2)
    assert steps == [2]
    assert "skipped the damaged checkpoint of step 3" in caplog.text
    # The run continues and writes that step again.
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(state_at(3), {"best": 0.3})
    checkpoints.close()
    assert_state(restore(saved)[0], 3)


def test_damage_to_many_arrays_is_one_sentence(tmp_path, caplog):
    """Orbax reads them all at once, and each read that fails would report."""
    state = {**state_at(1), "many": list(jax.random.normal(jax.random.key(0), (300, 64, 64)))}
    checkpoints = Checkpoints(tmp_path / "many", keep=1)
    checkpoints.save(state, {})
    checkpoints.close()
    truncate(largest_file(tmp_path / "many"))
    checkpoints = Checkpoints(tmp_path / "many", keep=1)
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoints.restore(state)
    checkpoints.close()
    gc.collect()
    assert not caplog.records, caplog.text  # and no unraisable exception, which would be a warning


def test_nothing_of_the_process_stays_changed(saved):
    """While checkpoints are open, the tracebacks of abandoned work are hidden; afterwards nothing is."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    hook, filters = sys.unraisablehook, [list(logger.filters) for logger in loggers]
    first, second = Checkpoints(saved, keep=2), Checkpoints(saved, keep=2)
    assert sys.unraisablehook != hook
    first.close()
    assert sys.unraisablehook != hook
    second.close()
    assert (sys.unraisablehook, [list(logger.filters) for logger in loggers]) == (hook, filters)


@pytest.mark.parametrize("shortage", [MemoryError(), OSError(errno.EMFILE, "Too many open files")], ids=repr)
def test_a_shortage_condemns_no_checkpoint(saved, shortage, monkeypatch):
    checkpoints = Checkpoints(saved, keep=2)

    def fail(*args, **kwargs):
        raise shortage

    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(type(shortage)):
        checkpoints.restore(state_at(0))
    assert checkpoints.steps == [2, 3]
    checkpoints.close()


def test_all_damaged(saved):
    for step in ("2", "3"):
        flip_a_bit(largest_file(saved / step))
    for _ in range(2):  # nothing is moved: it may be the network that is another
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged, or .* \(step 3: .*; step 2: .*\)"):
            restore(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_checkpoints_of_another_network_are_left_alone(saved):
    other = {**state_at(0), "params": {"a.kernel": jnp.zeros((3, 3, 64, 100)), "a.bias": jnp.zeros(8)}}
    checkpoints = Checkpoints(saved, keep=2)
    with pytest.raises(UserError, match="of another network .*step 3: .*shape"):
        checkpoints.restore(other)
    checkpoints.close()
    gc.collect()
    assert_state(restore(saved)[0], 3)


def test_a_killed_save_leaves_nothing(saved):
    """Orbax writes beside the destination and renames; a leftover is no checkpoint."""
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    restored, steps = restore(saved)
    assert_state(restored, 3)
    assert steps == [2, 3]


def test_a_full_disk_is_one_sentence_and_harms_nothing(saved, caplog):
    """A limit on the size of files stands in for it."""
    large = {**state_at(4), "large": jax.random.normal(jax.random.key(0), (2_000_000,))}
    checkpoints = Checkpoints(saved, keep=2)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))

    def save():
        checkpoints.save(large, {})
        checkpoints.wait()

    try:
        with pytest.raises(UserError, match=r"step 4 could not be written .* intact \(the last is step 3\)"):
            save()
        assert checkpoints.last_whole() == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not caplog.records
    assert_state(restore(saved)[0], 3)


def test_fingerprint_sees_any_bit():
    state = state_at(1)
    whole = int(fingerprint(state))
    changed = np.array(state["params"]["a.kernel"])
    changed.view(np.uint32)[1, 2, 3, 4] ^= 1
    assert int(fingerprint({**state, "params": {**state["params"], "a.kernel": jnp.asarray(changed)}})) != whole
    assert int(fingerprint({**state, "step": jnp.int32(2)})) != whole
    swapped = {"a": jnp.ones(3), "b": jnp.zeros(3)}
    assert int(fingerprint(swapped)) != int(fingerprint({"a": swapped["b"], "b": swapped["a"]}))
