"""Streams: batches reach the devices in order, and worker processes neither die too early nor live on."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_flax.data import evaluation_batches, evaluation_transform, open_source, prefetch_to_device


def test_batches_reach_the_devices_in_order():
    source = open_source("synthetic:4x4x3:32")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    size = 4 * len(jax.devices())
    host = list(evaluation_batches(source, evaluation_transform(None, None), batch_size=size))
    device = list(prefetch_to_device(iter(host), sharding))
    assert len(device) == len(host)
    for a, b in zip(host, device, strict=True):
        assert b["image"].sharding == sharding
        assert b["image"].dtype == np.uint8
        np.testing.assert_array_equal(a["image"], b["image"])


PROGRAM = """
import multiprocessing, os, signal, sys
from resnet_flax.data import open_source, training_batches, TrainingTransform
if __name__ == "__main__":
    source = open_source(f"folder:{sys.argv[1]}")
    stream = training_batches(source, TrainingTransform(8), batch_size=2, seed=0, workers=2)
    next(stream)
    workers = [process.pid for process in multiprocessing.active_children()]
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in workers:
            os.kill(worker, number)
    for _ in range(20):  # more than are ready
        next(stream)
    print(*workers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:2 workers on 1 cores")
def test_workers_outlive_ctrl_c_and_not_their_parent(tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "set" / name / f"{i}.png")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [sys.executable, str(program), str(tmp_path / "set")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_grain_interface():
    """The flags that Grain reads when it starts worker processes, in a program that has parsed none of its own."""
    script = (
        "import grain\n"
        "from absl import flags\n"
        "from resnet_flax.data.stream import _flags_readable\n"
        "def readable():\n"
        "    try:\n"
        "        return flags.FLAGS.grain_enable_multiprocess_worker_profiling\n"
        "    except flags.UnparsedFlagAccessError:\n"
        "        return None\n"
        "print(readable())\n"
        "with _flags_readable():\n"
        "    print(readable())\n"
        "print(readable())\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.split() == ["None", "False", "None"]
