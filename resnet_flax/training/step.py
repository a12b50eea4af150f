"""The training step: one pure function for one device, eight, or many hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from resnet_flax.training.optimizers import Schedule
from resnet_flax.training.sharding import AXIS
from resnet_flax.training.state import Arrays, Network, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Prepare = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
Forward = Callable[[Any, jax.Array], jax.Array]

BUCKET_BYTES = 25 * 2**20  # as PyTorch's DistributedDataParallel


Bucket = tuple[list[str], jax.Array]


def pack(arrays: Arrays, order: Sequence[str]) -> list[Bucket]:
    """The arrays end to end in a few long vectors, each with the names of what it holds.

    The backward pass has the last layer's gradient first. Buckets are therefore filled in reverse of `order`, the
    layers' own, so that most of them can travel while the rest is still being computed. One all-reduce per array would
    cost a launch each; one for all of them could begin only at the end (Li et al., "PyTorch Distributed",
    arXiv:2006.15704, section 3.2).
    """
    groups: list[list[str]] = []
    size = BUCKET_BYTES
    for name in reversed(order):
        if size >= BUCKET_BYTES or arrays[groups[-1][0]].dtype != arrays[name].dtype:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += arrays[name].nbytes
    return [(names, jnp.concatenate([arrays[name].reshape(-1) for name in names])) for names in groups]


def unpack(buckets: Sequence[Bucket], like: Arrays) -> Arrays:
    """The arrays that `pack` laid into buckets, in the shapes of `like`."""
    arrays: Arrays = {}
    for names, flat in buckets:
        ends = np.cumsum([like[name].size for name in names])[:-1]
        parts = jnp.split(flat, ends)
        arrays |= {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}
    return arrays


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    loss: Loss,
    prepare: Prepare,
    *,
    forward: Forward = lambda model, images: model(images),
    mesh: Mesh | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    ema_every: int = 1,
    ema_start: int = 0,
    skip_nonfinite: bool = False,
) -> Wrapped:
    """Builds the jitted step (state, batch) -> (state, metrics); the state it is given is donated.

    With a mesh the batch is cut over its devices and the state is the same on all of them. Each device normalises by
    its own batch statistics, unless the model's norms name the axis "data"; gradients and running statistics are
    averaged.

    Args:
        optimizer: of flat dicts; its `update` takes `step`.
        schedule: step -> learning rate, for the metrics.
        loss: (logits (N, classes), targets (N, classes)) -> the mean over the batch.
        prepare: (key, batch) -> (images (N, H, W, C), targets (N, classes)): what the device does to a batch.
        forward: (model, images) -> logits (N, classes).
        accumulate: micro-batches per device, one after the other: the gradients are averaged, and the running
            statistics updated each time, as a PyTorch loop that calls `backward` that often.
        ema_decay: average <- decay * average + (1 - decay) * current after every `ema_every` steps; up to step
            `ema_start` the average is a copy.
        skip_nonfinite: leave out an update whose loss or gradient is not finite.

    The metrics are scalars: loss, accuracy, learning_rate, gradient_norm, finite.
    """
    statistics_sent = [name for name in network.live_statistics if not name.endswith("num_batches_tracked")]
    devices = 1 if mesh is None else mesh.size

    def varying(tree):
        """Each device's own copy, so that gradients are its own too, and averaged where we say so."""
        return jax.lax.pcast(tree, AXIS, to="varying") if devices > 1 else tree

    def gradients(params: Arrays, frozen: Arrays, statistics: Arrays, images, targets, key):
        def objective(params: Arrays):
            model = network.model({**params, **frozen, **statistics}, key=key)
            logits = forward(model, images)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            value = loss(logits, targets)
            accuracy = (logits.argmax(-1) == targets.argmax(-1)).mean(dtype=value.dtype)
            return value, ({"loss": value, "accuracy": accuracy}, {**statistics, **network.live(model)})

        (_, (metrics, statistics)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, statistics, metrics

    def accumulated(params: Arrays, frozen: Arrays, statistics: Arrays, images, targets, key):
        if accumulate == 1:
            return gradients(params, frozen, statistics, images, targets, key)

        def micro(carry, part):
            total, statistics, metrics = carry
            grads, statistics, more = gradients(params, frozen, statistics, *part)
            return (jax.tree.map(jnp.add, total, grads), statistics, jax.tree.map(jnp.add, metrics, more)), None

        def split(x):
            return x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])

        parts = split(images), split(targets), jax.random.split(key, accumulate)
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        start = (
            jax.tree.map(jnp.zeros_like, params),
            statistics,
            varying(dict.fromkeys(("loss", "accuracy"), jnp.zeros((), dtype))),
        )
        (grads, statistics, metrics), _ = jax.lax.scan(micro, start, parts)
        grads, metrics = jax.tree.map(lambda total: total / accumulate, (grads, metrics))
        return grads, statistics, metrics

    def averaged(buckets: list[Bucket]) -> list[Bucket]:
        if devices > 1:
            return [(names, jax.lax.psum(flat, AXIS) / devices) for names, flat in buckets]
        # Nothing to send; the barrier keeps XLA from taking the buckets apart again.
        return [(names, jax.lax.optimization_barrier(flat)) for names, flat in buckets]

    def counted(statistics: Arrays) -> Arrays:
        """The norms' counters after this step, in one launch rather than one each."""
        names = [name for name in network.live_statistics if name not in statistics_sent]
        if not names:
            return {}
        counters = jax.lax.optimization_barrier(jnp.stack([statistics[name] for name in names])) + accumulate
        return dict(zip(names, counters, strict=True))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, statistics = state["params"], state["statistics"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        if devices > 1:
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        prepare_key, model_key = jax.random.split(key)
        images, targets = prepare(prepare_key, batch)
        inputs = varying((params, state["frozen"], statistics))
        grads, changed, metrics = accumulated(*inputs, images, targets, model_key)
        buckets = pack(grads, [name for name in network.order if name in grads])
        if devices > 1:
            small = {**{name: changed[name] for name in statistics_sent}, **metrics}
            mean = unpack(averaged(pack(small, list(small))), small)
            changed, metrics = mean, {name: mean[name] for name in metrics}
        buckets = averaged(buckets)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(flat)) for _, flat in buckets))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        # What isn't finite never reaches the parameters. Passing through one operation on whole buckets also has XLA
        # update all parameters of one shape in one launch, 33 in all for ResNet-50 rather than 160; one that waited
        # for the norm would have it put off the all-reduces.
        grads = unpack([(names, jnp.where(jnp.isfinite(flat), flat, 0)) for names, flat in buckets], grads)
        counters = counted(statistics)
        statistics = {**statistics, **{name: changed[name] for name in statistics_sent}, **counters}

        updates, optimizer_state = optimizer.update(grads, state["optimizer"], params, step=state["step"])
        new = {**state, "params": optax.apply_updates(params, updates), "optimizer": optimizer_state}
        new |= {"statistics": statistics, "step": state["step"] + 1}
        if ema_decay is not None:
            new["ema"] = _averaged(state["ema"], new, ema_decay, ema_every, ema_start)

        if skip_nonfinite:
            new = {**jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state), "step": new["step"]}
        metrics |= {"learning_rate": schedule(state["step"]), "gradient_norm": norm, "finite": finite}
        return new, metrics

    if devices > 1:
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P())
    return jax.jit(step, donate_argnums=0)


def _averaged(average: Any, new: TrainState, decay: float, every: int, start: int) -> Any:
    """The moving average after this step; integer counters are copied."""
    current = {"params": new["params"], "statistics": new["statistics"]}
    rate = jnp.where(new["step"] <= start, 1.0, 1.0 - decay)

    def moved(average):
        return jax.tree.map(
            lambda old, now: old + rate.astype(old.dtype) * (now - old) if jnp.issubdtype(old, jnp.inexact) else now,
            average,
            current,
        )

    if every == 1:
        return moved(average)
    return jax.lax.cond(new["step"] % every == 0, moved, lambda average: average, average)
