"""One device, eight, and two processes of four: the same parameters in float64, and every shard the same."""

import copy
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity import to_torch
from tests import ROOT
from tests.conftest import CACHE
from tests.resnet_flax.training import data_parallel_worker
from tests.resnet_flax.training.test_step import build, in_torch, torch_tiny
from tests.resnet_flax.training.tiny import CLASSES, batches


def start(out, devices, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.resnet_flax.training.data_parallel_worker", str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{"one", "eight", "hosts"}: the worker's arrays."""
    folder = tmp_path_factory.mktemp("parallel")
    finish(start(folder / "one.npz", 1), start(folder / "eight.npz", 8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    finish(*(start(folder / "hosts.npz", 4, JAX_PROCESS_ID=str(index), **job) for index in range(2)))
    return {name: dict(np.load(folder / f"{name}.npz")) for name in ("one", "eight", "hosts")}


def test_devices_are_what_was_asked_for(results):
    found = {name: (int(arrays["devices"]), int(arrays["processes"])) for name, arrays in results.items()}
    assert found == {"one": (1, 1), "eight": (8, 1), "hosts": (8, 2)}


def test_a_process_has_all_gpus_of_its_host_under_slurm():
    """JAX takes a SLURM task for that of one GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "JAX_COORDINATOR_ADDRESS": address}
    script = "import jax; from resnet_flax.training.hosts import _initialize; _initialize(); "
    script += "print(jax.process_count(), jax._src.xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    for given, visible in [({}, "all"), ({"JAX_LOCAL_DEVICE_IDS": "2,3"}, "2,3")]:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **job, **given}
        found = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert found.stdout.split() == ["1", visible], found.stderr


@pytest.mark.parametrize("many", ["eight", "hosts"])
def test_synchronised_norms_make_one_device_of_many(results, many):
    """Parameters, statistics, their average and the metrics after ten steps."""
    names = [name for name in results["one"] if name.startswith("sync")]
    assert len(names) > 30
    for name in names:
        np.testing.assert_allclose(results[many][name], results["one"][name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_hosts_compute_what_devices_do(results):
    for name, array in results["eight"].items():
        if name.startswith("local"):
            np.testing.assert_allclose(results["hosts"][name], array, rtol=1e-12, err_msg=name)


def test_norms_of_each_device_are_torch_replica_by_replica(results):
    """Eight replicas with their own statistics, two micro-batches each: gradients and running statistics averaged."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    with jax.enable_x64(True):
        network, state, _ = build()
        master = torch_tiny(network, state)
    optimizer = torch.optim.SGD(master.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for batch in batches(2, data_parallel_worker.BATCH):
        gradients, statistics = [], []
        for device in range(8):
            replica = copy.deepcopy(master).train()
            replica.zero_grad()
            for micro in range(2):
                begin = 4 * device + 2 * micro
                images, labels = in_torch(batch, slice(begin, begin + 2))
                (torch.nn.functional.cross_entropy(replica(images), labels) / 2).backward()
            gradients.append([p.grad for p in replica.parameters()])
            statistics.append(dict(replica.named_buffers()))
        for parameter, *grads in zip(master.parameters(), *gradients, strict=True):
            parameter.grad = sum(grads) / 8
        optimizer.step()
        for name, buffer in master.named_buffers():
            values = [replica[name] for replica in statistics]
            buffer.copy_(values[0] if name.endswith("tracked") else sum(values) / 8)

    with jax.enable_x64(True):
        ours = {name: results["eight"][f"local/{name}"] for name in network.order}
        ours = to_torch(network.model({name: jnp.asarray(array) for name, array in ours.items()}))
    for name, tensor in master.state_dict().items():
        np.testing.assert_allclose(ours[name], tensor.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["one", "eight", "hosts"])
def test_evaluation_counts_everything_once(results, name):
    found = results[name]
    (whole,) = batches(1, data_parallel_worker.EVALUATION, seed=7)
    assert int(found["count"]) == data_parallel_worker.EVALUATION == found["confusion"].sum()
    np.testing.assert_array_equal(found["confusion"].sum(1), np.bincount(whole["label"], minlength=CLASSES))
    assert float(found["accuracy"]) == np.trace(found["confusion"]) / data_parallel_worker.EVALUATION
    assert float(found["top5"]) == 1
    np.testing.assert_array_equal(found["confusion"], results["one"]["confusion"])
    np.testing.assert_allclose(found["loss"], results["one"]["loss"], rtol=1e-9)
