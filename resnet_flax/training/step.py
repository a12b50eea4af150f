"""The training step: one pure function for one device, eight, or many hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from resnet_flax.training.buckets import Bucket, pack, unpack
from resnet_flax.training.distillation import Lesson, Teacher
from resnet_flax.training.optimizers import Schedule
from resnet_flax.training.sharding import AXIS
from resnet_flax.training.state import Arrays, Network, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Prepare = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
Forward = Callable[[Any, jax.Array], jax.Array]
Gradients = tuple[Arrays, Arrays, Metrics]
"""(gradients, statistics after the forward pass, loss and accuracy)."""


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
    teacher: Teacher | None = None,
) -> Wrapped:
    """Builds the jitted step (state, batch) -> (state, metrics); it donates the buffers of the state passed in.

    With a mesh, the batch is split over its devices and the state is replicated. Each device normalises by its own
    batch statistics, unless the model's norms name the axis "data"; gradients and running statistics are averaged.

    Args:
        optimizer: of flat dicts; its `update` takes `step`.
        schedule: step -> learning rate, for the metrics.
        loss: (logits (N, classes), targets (N, classes)) -> the mean over the batch.
        prepare: (key, batch) -> (images (N, H, W, C), targets (N, classes)), run on the device.
        forward: (model, images) -> logits (N, classes).
        accumulate: micro-batches per device, one after the other. Gradients are averaged, and running statistics
            updated once per micro-batch, as in a PyTorch loop that calls `backward` that often.
        ema_decay: average <- decay * average + (1 - decay) * current after every `ema_every` steps; up to and including
            step `ema_start` the average is a copy.
        skip_nonfinite: skip an update whose loss or gradient is not finite.
        teacher: whose outputs are learnt as well. The step then takes its arrays as a third argument; they are on
            every device, as the state.

    The metrics are scalars: loss, accuracy, learning_rate, gradient_norm, finite.
    """
    devices = 1 if mesh is None else mesh.size
    average = None if ema_decay is None else MovingAverage(ema_decay, ema_every, ema_start)
    parts = TrainStep(
        network, optimizer, schedule, loss, prepare, forward, devices, accumulate, average, skip_nonfinite
    )

    def taught(state: TrainState, batch: Batch, arrays: Arrays) -> tuple[TrainState, Metrics]:
        assert teacher is not None
        return replace(parts, teach=partial(teacher.lesson, arrays)).step(state, batch)

    step, specs = (parts.step, (P(), P(AXIS))) if teacher is None else (taught, (P(), P(AXIS), P()))
    if devices > 1:
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
    return jax.jit(step, donate_argnums=0)


@dataclass(frozen=True)
class MovingAverage:
    """An exponential moving average of parameters and statistics; see `make_train_step` for the fields."""

    decay: float
    every: int
    start: int

    def after(self, average: Any, new: TrainState) -> Any:
        """The average after the step that gave `new`; integer counters are copied."""
        current = {"params": new["params"], "statistics": new["statistics"]}
        rate = jnp.where(new["step"] <= self.start, 1.0, 1.0 - self.decay)

        def moved(average):
            return jax.tree.map(
                lambda old, now: (
                    old + rate.astype(old.dtype) * (now - old) if jnp.issubdtype(old, jnp.inexact) else now
                ),
                average,
                current,
            )

        if self.every == 1:
            return moved(average)
        return jax.lax.cond(new["step"] % self.every == 0, moved, lambda average: average, average)


@dataclass(frozen=True)
class TrainStep:
    """The step as one of `devices` devices computes it, on its part of the batch; see `make_train_step` for the fields.

    `step` comes first, the parts that it is made of follow in the order in which they run.
    """

    network: Network
    optimizer: optax.GradientTransformationExtraArgs
    schedule: Schedule
    loss: Loss
    prepare: Prepare
    forward: Forward
    devices: int
    accumulate: int
    average: MovingAverage | None
    skip_nonfinite: bool
    teach: Callable[[jax.Array], Lesson] = lambda images: lambda loss, logits: loss

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """(state, this device's part of the batch) -> (the next state, metrics), both the same on every device."""
        params, statistics = state["params"], state["statistics"]
        prepare_key, model_key = jax.random.split(self.key(state))
        images, targets = self.prepare(prepare_key, batch)
        inputs = self.varying((params, state["frozen"], statistics))
        grads, changed, metrics = self.accumulated(*inputs, images, targets, model_key)
        buckets = pack(grads, [name for name in self.network.order if name in grads])
        changed, metrics = self.mean_of_small(changed, metrics)
        buckets = self.mean(buckets)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(flat)) for _, flat in buckets))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        grads = self.finite_part(buckets, grads)
        counters = self.counted(statistics)
        statistics = {**statistics, **{name: changed[name] for name in self.averaged_statistics}, **counters}
        new = self.updated(state, grads, statistics)
        if self.skip_nonfinite:
            new = {**jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state), "step": new["step"]}
        metrics |= {"learning_rate": self.schedule(state["step"]), "gradient_norm": norm, "finite": finite}
        return new, metrics

    def key(self, state: TrainState) -> jax.Array:
        """This device's random key for this step."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        return jax.random.fold_in(key, jax.lax.axis_index(AXIS)) if self.devices > 1 else key

    def varying(self, tree: Any) -> Any:
        """Marks replicated arrays as this device's own, so that their gradients stay local until we average them."""
        return jax.lax.pcast(tree, AXIS, to="varying") if self.devices > 1 else tree

    def accumulated(self, params: Arrays, frozen: Arrays, statistics: Arrays, images, targets, key) -> Gradients:
        """`gradients` of the device's whole batch: the mean over its micro-batches, run one after the other."""
        if self.accumulate == 1:
            return self.gradients(params, frozen, statistics, images, targets, key)

        def micro(carry, part):
            total, statistics, metrics = carry
            grads, statistics, more = self.gradients(params, frozen, statistics, *part)
            return (jax.tree.map(jnp.add, total, grads), statistics, jax.tree.map(jnp.add, metrics, more)), None

        def split(x):
            return x.reshape(self.accumulate, x.shape[0] // self.accumulate, *x.shape[1:])

        parts = split(images), split(targets), jax.random.split(key, self.accumulate)
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        start = (
            jax.tree.map(jnp.zeros_like, params),
            statistics,
            self.varying(dict.fromkeys(("loss", "accuracy"), jnp.zeros((), dtype))),
        )
        (grads, statistics, metrics), _ = jax.lax.scan(micro, start, parts)
        grads, metrics = jax.tree.map(lambda total: total / self.accumulate, (grads, metrics))
        return grads, statistics, metrics

    def gradients(self, params: Arrays, frozen: Arrays, statistics: Arrays, images, targets, key) -> Gradients:
        """One forward and backward pass in train mode."""
        lesson = self.teach(images)

        def objective(params: Arrays):
            model = self.network.model({**params, **frozen, **statistics}, key=key)
            logits = self.forward(model, images)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            value = lesson(self.loss(logits, targets), logits)
            accuracy = (logits.argmax(-1) == targets.argmax(-1)).mean(dtype=value.dtype)
            return value, ({"loss": value, "accuracy": accuracy}, {**statistics, **self.network.live(model)})

        (_, (metrics, statistics)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, statistics, metrics

    @property
    def averaged_statistics(self) -> list[str]:
        """The running statistics that differ between devices; the norms' counters do not."""
        return [name for name in self.network.live_statistics if not name.endswith("num_batches_tracked")]

    def mean_of_small(self, changed: Arrays, metrics: Metrics) -> tuple[Arrays, Metrics]:
        """The statistics and the metrics averaged over the devices, in buckets of their own."""
        if self.devices == 1:
            return changed, metrics
        small = {**{name: changed[name] for name in self.averaged_statistics}, **metrics}
        mean = unpack(self.mean(pack(small, list(small))), small)
        return mean, {name: mean[name] for name in metrics}

    def mean(self, buckets: list[Bucket]) -> list[Bucket]:
        """Buckets averaged over the devices, one all-reduce each."""
        if self.devices > 1:
            return [(names, jax.lax.psum(flat, AXIS) / self.devices) for names, flat in buckets]
        # Nothing to send; the barrier keeps XLA from taking the buckets apart again.
        return [(names, jax.lax.optimization_barrier(flat)) for names, flat in buckets]

    def finite_part(self, buckets: list[Bucket], grads: Arrays) -> Arrays:
        """The gradients in the buckets, zero where they aren't finite: that never reaches the parameters.

        Passing whole buckets through one operation makes XLA update all parameters of one shape in one launch on a GPU,
        33 for ResNet-50 instead of 160; an operation that waited for the norm would make it postpone the all-reduces.
        A CPU's compiler instead compiles one program for all updates that differ in their arrays alone, but not for
        slices of a bucket, each at a place of its own. There, on one device, the gradients are taken as they were.
        """

        def sliced(flats: list[jax.Array], grads: Arrays) -> Arrays:
            names = [names for names, _ in buckets]
            return unpack([*zip(names, map(_finite_part, flats), strict=True)], grads)

        def separate(flats: list[jax.Array], grads: Arrays) -> Arrays:
            return jax.tree.map(_finite_part, grads)

        flats = [flat for _, flat in buckets]
        if self.devices > 1:
            return sliced(flats, grads)
        return jax.lax.platform_dependent(flats, grads, cpu=separate, default=sliced)

    def counted(self, statistics: Arrays) -> Arrays:
        """The norms' counters after this step, in one launch instead of one each."""
        averaged = self.averaged_statistics
        names = [name for name in self.network.live_statistics if name not in averaged]
        if not names:
            return {}
        counters = jax.lax.optimization_barrier(jnp.stack([statistics[name] for name in names])) + self.accumulate
        return dict(zip(names, counters, strict=True))

    def updated(self, state: TrainState, grads: Arrays, statistics: Arrays) -> TrainState:
        """The state after the optimiser's update, with the moving average if there is one."""
        params, step = state["params"], state["step"]
        updates, optimizer_state = self.optimizer.update(grads, state["optimizer"], params, step=step)
        new = {**state, "params": optax.apply_updates(params, updates), "optimizer": optimizer_state}
        new |= {"statistics": statistics, "step": step + 1}
        if self.average is not None:
            new["ema"] = self.average.after(state["ema"], new)
        return new


@jax.jit  # traced once for each shape
def _finite_part(array: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(array), array, 0)
