"""What the host spends to dispatch a training step, against a jitted identity over the same arrays.

usage: python benchmarks/host_overhead.py [--model resnet50] [--rounds 15] [--json FILE]

Both are called with donated state until the call returns; the work itself is waited for outside. What is timed is the
processor time of the calling thread: on a CPU the step's own threads need the same cores, and waiting for them is no
part of dispatching. The two alternate in one process and the medians count. Exit status 1 if the step costs more than
1.5 times the identity. What the loop adds, keeping a step's metrics and reading those that are done, is reported as
well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resnet_flax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from resnet_flax.training.metrics import Backlog
from resnet_flax.training.setup import DataFacts, Setup, resolve
from resnet_flax.training.sharding import data_mesh

LIMIT = 1.5


def timed(call, state, *rest):
    """(seconds until the call returned, the new state, metrics), the device idle before and after."""
    jax.block_until_ready((state, rest))
    began = time.thread_time()
    result = call(state, *rest)
    seconds = time.thread_time() - began
    jax.block_until_ready(result)
    return seconds, *(result if rest else (result,))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    # Tiny images: the time to dispatch does not depend on them, the time to wait does.
    config = TrainConfig(batch_size=2, model=ModelConfig(options.model), optimizer=OptimizerConfig("momentum"))
    setup = Setup(resolve(config), data_mesh(jax.devices()[:1]), DataFacts(1000, 3, 1000))
    state = setup.state(setup.initial_arrays())
    batch = jax.device_put({"image": np.zeros((2, 32, 32, 3), np.uint8), "label": np.zeros(2, np.int32)}, setup.sharded)
    copy = jax.jit(lambda state: state, donate_argnums=0)
    other = jax.tree.map(jnp.copy, state)
    leaves = len(jax.tree.leaves(state))

    step_times, identity_times, backlog_times = [], [], []
    backlog = Backlog()
    for number in range(options.rounds + 2):
        seconds, state, metrics = timed(setup.train_step, state, batch)
        step_times.append(seconds)
        seconds, other = timed(copy, other)
        identity_times.append(seconds)
        began = time.thread_time()
        backlog.push(number, metrics)
        list(backlog.ready())
        backlog_times.append(time.thread_time() - began)
    # The first two calls compile.
    ours, identity, reading = (statistics.median(times[2:]) for times in (step_times, identity_times, backlog_times))
    ratio = ours / identity
    print(f"{options.model}, {leaves} arrays on {jax.devices()[0].device_kind}")
    print(f"dispatch of a step   {1e3 * ours:6.2f} ms")
    print(f"jitted identity      {1e3 * identity:6.2f} ms   ratio {ratio:.2f} (limit {LIMIT})")
    print(f"reading its metrics  {1e3 * reading:6.2f} ms")
    if options.json:
        row = {"what": "dispatch of a training step (ms)", "ours": 1e3 * ours, "peer": 1e3 * identity, "ratio": ratio}
        row |= {"metrics_ms": 1e3 * reading, "settings": f"{options.model}, {leaves} leaves, {options.rounds} rounds"}
        options.json.write_text(json.dumps([row | {"versions": f"jax {jax.__version__}"}], indent=2) + "\n")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
