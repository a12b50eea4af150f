"""Two hosts over loopback: when one stops, the other does, with a sentence, and the run resumes to the same bits."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from resnet_flax.training import hosts
from tests import ROOT
from tests.conftest import CACHE
from tests.resnet_flax.training.small import OPTIONS, STEPS

ENDS_WITHIN = 60  # seconds after the host with the fault


def start(folder, index, address, fault, phase, options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.resnet_flax.training.hosts_worker", fault, phase, *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *options, faulty=None, fault="none", phase="start", more=()):
    """[(exit status, stderr)] of the two hosts; the one that is not at fault ends within `ENDS_WITHIN`.

    Args:
        fault: what happens to the host `faulty`; "mistake" also for options that it alone has, which are `more`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [*options, "--workdir", "run", "--distributed"]
    if "--resume" not in options:
        options = ["digits", *OPTIONS, *options]
    own = [more if i == faulty else () for i in range(2)]
    faults = ["none" if more or i != faulty else fault for i in range(2)]
    both = [start(folder, i, address, faults[i], phase, [*options, *own[i]]) for i in range(2)]
    try:
        if fault in ("kill", "mistake", "error"):
            both[faulty].wait(timeout=300)
            both[1 - faulty].wait(timeout=ENDS_WITHIN)
        if fault == "freeze":
            both[1 - faulty].wait(timeout=300)
            both[faulty].kill()
        return [(process.returncode, errors) for process in both for _, errors in [process.communicate(timeout=300)]]
    finally:
        for process in both:
            process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state and the best weights of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for status, errors in run(folder):
        assert status == 0, errors
    return result_of(folder / "run")


def result_of(workdir):
    """The checksum over all bits of the final state, and the best weights; Orbax restores no state of two hosts."""
    progress = json.loads((workdir / "checkpoints" / str(STEPS) / "progress" / "metadata").read_text())
    return progress["fingerprint"], (workdir / "best.safetensors").read_bytes()


def assert_sentence(result, faulty, message, status):
    code, errors = result
    assert code == status, errors
    lines = errors.strip().splitlines()
    assert lines[-1].startswith(f"error: host {faulty} has stopped: {message}"), errors
    assert not any(word in errors for word in ("Traceback", "Check failure", "terminate called")), errors


def assert_resumes(folder, whole):
    for status, errors in run(folder, "--resume"):
        assert status == 0, errors
    assert result_of(folder / "run") == whole


def test_a_mistake_on_one_host_ends_both_before_anything_is_written(tmp_path):
    results = run(tmp_path, faulty=1, fault="mistake", phase="data")
    assert results[1][0] == 2
    assert results[1][1].strip().endswith("error: the disk is full")
    assert_sentence(results[0], 1, "the disk is full; start all hosts again", 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning-rate", "nan"], "--learning-rate must be finite and at least 0; got nan"),
        (["--learning-rte", "1"], "the command line is not understood"),
        (["--data", "folder:absent"], "no directory"),
        (["--seed", "7"], "this host and host 0 do not have the same run (--seed 0 there, 7 here)"),
    ],
)
def test_mistakes_on_the_command_line_of_one_host(tmp_path, faulty, more, message):
    results = run(tmp_path, faulty=faulty, fault="mistake", more=more)
    assert results[faulty][0] == results[1 - faulty][0] == 2
    if "this host and" in message:  # the second one finds it
        faulty, message = 1, message if faulty else message.replace("0 there, 7", "7 there, 0")
    assert f"error: {message}" in results[faulty][1]
    assert_sentence(results[1 - faulty], faulty, message, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_workdir_that_is_not_shared(tmp_path):
    results = run(tmp_path, faulty=1, fault="mistake", more=["--workdir", "other"])
    assert results[1][0] == 2, results[1]
    assert_sentence(results[0], 1, "other is not the directory in which host 0 has written config.json", 2)
    assert not (tmp_path / "other").exists()


def test_a_host_that_is_killed_while_it_saves(tmp_path, whole):
    """The first one, with which JAX's coordination service goes."""
    results = run(tmp_path, faulty=0, fault="kill", phase="saving")
    assert_sentence(results[1], 0, "it is gone, ", hosts.LOST)
    assert re.search(r"resume with \S*python\S* -m resnet_flax train --resume --workdir run --dist", results[1][1])
    assert_resumes(tmp_path, whole)


@pytest.mark.full
@pytest.mark.parametrize("phase", ["training", "evaluation", "saving"])
@pytest.mark.parametrize(
    ("fault", "message", "status"),
    [
        ("kill", "it is gone, ", hosts.LOST),
        ("freeze", "it is gone, ", hosts.LOST),
        ("mistake", "the disk is full; resume with", 2),
        ("error", "ZeroDivisionError: a bug; resume with", hosts.LOST),
    ],
)
@pytest.mark.parametrize("faulty", [0, 1])
def test_failures(tmp_path, whole, faulty, fault, message, status, phase):
    results = run(tmp_path, faulty=faulty, fault=fault, phase=phase)
    assert_sentence(results[1 - faulty], faulty, message, status)
    assert_resumes(tmp_path, whole)


@pytest.mark.full
@pytest.mark.parametrize("phase", ["start", "data", "training"])
def test_a_slow_host_is_waited_for(tmp_path, whole, phase):
    """For longer than the 30 seconds that Gloo allows."""
    for status, errors in run(tmp_path, faulty=1, fault="45", phase=phase):
        assert status == 0, errors
    assert result_of(tmp_path / "run") == whole


def test_the_store():
    """Undocumented in JAX: what resnet_flax.training.hosts uses of it."""
    from jax._src.distributed import global_state
    from jax._src.lib import _jax

    assert {"client", "process_id", "num_processes"} <= set(dir(global_state))
    assert {"key_value_set", "key_value_dir_get"} <= vars(_jax.DistributedRuntimeClient).keys()
