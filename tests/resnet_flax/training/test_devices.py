"""Choosing devices, and keeping freed memory on a CPU."""

import os
import platform
import subprocess
import sys

import pytest

from tests import ROOT

PAGE_FAULTS = """
import sys
import jax, jax.numpy as jnp
from resource import RUSAGE_SELF, getrusage
from resnet_flax.training.config import RunConfig
from resnet_flax.training.devices import open_devices

if sys.argv[1] == "run":
    open_devices(RunConfig(device="cpu"))
step = jax.jit(lambda x: ((x + 1) @ (x + 1).T[:, :16]).sum())  # a product needs all of x + 1, 128 MB
x = jnp.ones((4_000, 8_000))
faults = []
for _ in range(24):
    before = getrusage(RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(getrusage(RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # the heap still grows now and then, until a hole of the right size stays
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_run_on_a_cpu_keeps_its_memory():
    faults = {
        kind: int(subprocess.check_output([sys.executable, "-c", PAGE_FAULTS, kind], cwd=ROOT, text=True))
        for kind in ("run", "plain")
    }
    assert faults["run"] < faults["plain"] / 10


def test_no_gpu_is_one_sentence():
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--device", "gpu"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device gpu, but JAX finds no GPU; ")
    assert "Traceback" not in done.stderr
