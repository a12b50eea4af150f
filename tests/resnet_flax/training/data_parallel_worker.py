"""Trains Tiny in float64 on all devices of this job, and writes what came out: run by test_sharding.py.

usage: data_parallel_worker.py OUT (the environment says how many devices and processes)
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from resnet_flax.training.config import LossConfig, OptimizerConfig
from resnet_flax.training.evaluation import make_evaluate
from resnet_flax.training.loss import make_loss
from resnet_flax.training.optimizers import make_optimizer
from resnet_flax.training.sharding import AXIS, data_mesh, replicated, sharded
from resnet_flax.training.state import Network, create_state, model_arrays
from resnet_flax.training.step import make_train_step
from tests.resnet_flax.training.tiny import CLASSES, Tiny, batches, randomised

BATCH = 32
EVALUATION = 37  # not a multiple of anything


def prepare(key, batch):
    return batch["image"], jax.nn.one_hot(batch["label"], CLASSES, dtype=batch["image"].dtype)


def place(tree, sharding):
    """Global arrays from what every process has whole."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]), tree
    )


def check_shards(state):
    """All devices of this process hold the same bits of every leaf."""
    for path, leaf in jax.tree.leaves_with_path(state):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=jax.tree_util.keystr(path))


def train(mesh, *, sync, steps, ema=False, accumulate=1):
    model = Tiny(param_dtype=jnp.float64, axis_name=AXIS if sync and mesh.size > 1 else None, rngs=nnx.Rngs(0))
    network = Network(model)
    schedule = optax.constant_schedule(0.1)
    optimizer = make_optimizer(OptimizerConfig("momentum", weight_decay=0.01), schedule, network)
    arrays = {n: jnp.asarray(v) for n, v in randomised(network, network.arrays(model), np.float64).items()}
    state = place(create_state(network, arrays, optimizer, seed=0, ema=ema), replicated(mesh))
    step = make_train_step(
        network,
        optimizer,
        schedule,
        make_loss(LossConfig()),
        prepare,
        mesh=mesh,
        accumulate=accumulate,
        ema_decay=0.9 if ema else None,
    )
    for batch in batches(steps, BATCH):
        state, metrics = step(state, place(batch, sharded(mesh)))
        check_shards((state, metrics))
    return network, state, metrics


def evaluate(mesh, network, state):
    """A set that fills the last batch only partly."""
    (whole,) = batches(1, EVALUATION, seed=7)
    padded = {n: np.concatenate([x, np.zeros((64 - EVALUATION, *x.shape[1:]), x.dtype)]) for n, x in whole.items()}
    padded["mask"] = np.arange(64) < EVALUATION
    parts = [{n: x[start : start + BATCH] for n, x in padded.items()} for start in (0, BATCH)]
    run = make_evaluate(network, CLASSES, lambda model, images: model(images), mesh=mesh)
    return run(model_arrays(state), [place(part, sharded(mesh)) for part in parts])


def main(out):
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    jax.config.update("jax_enable_x64", True)
    mesh = data_mesh()
    found = {"devices": mesh.size, "processes": jax.process_count()}
    network, state, metrics = train(mesh, sync=True, steps=10, ema=True)
    found |= {f"sync/{n}": np.asarray(x) for n, x in model_arrays(state).items()}
    found |= {f"sync_ema/{n}": np.asarray(x) for n, x in model_arrays(state, ema=True).items()}
    found |= {f"sync_metrics/{n}": np.asarray(x) for n, x in metrics.items()}
    result = evaluate(mesh, network, state)
    found |= {"count": result.count, "loss": result.loss, "accuracy": result.accuracy, "top5": result.top5}
    found["confusion"] = result.confusion
    network, state, metrics = train(mesh, sync=False, steps=2, accumulate=2 if mesh.size > 1 else 1)
    found |= {f"local/{n}": np.asarray(x) for n, x in model_arrays(state).items()}
    if jax.process_index() == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
