"""The peer: ResNet-50 and its training step as Flax's official ImageNet example has them, written from a description.

Linen modules; "SAME" padding (symmetric only in the stem's convolution); `flax.linen.BatchNorm` with momentum 0.9, each
block's last scale starting at zero; SGD with Nesterov momentum; an L2 penalty on kernels inside the loss; images that
the host has normalised and cast to the compute dtype.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

STAGES = (3, 4, 6, 3)
WEIGHT_DECAY = 1e-4


class Bottleneck(nn.Module):
    features: int
    stride: int
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not self.train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), strides)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.features, (1, 1), strides)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    num_classes: int = 1000
    dtype: Any = jnp.float32
    train: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), padding="SAME")
        for number, depth in enumerate(STAGES):
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                x = Bottleneck(64 * 2**number, stride, self.dtype, self.train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


def training(dtype: Any, num_classes: int = 1000):
    """(init, step): `init(key, images)` gives the state, and `step(state, batch)` the next one and the metrics."""
    model = ResNet50(num_classes, dtype)
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, 1000), momentum=0.9, nesterov=True)

    def init(key, images):
        variables = model.init(key, images)
        return {**variables, "optimizer": optimizer.init(variables["params"])}

    def step(state, batch):
        def objective(params):
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, changed = model.apply(variables, batch["image"], mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], num_classes)).mean()
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
            return loss + WEIGHT_DECAY / 2 * squares, (loss, logits, changed["batch_stats"])

        (_, (loss, logits, statistics)), grads = jax.value_and_grad(objective, has_aux=True)(state["params"])
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "batch_stats": statistics, "optimizer": optimizer_state}
        return new, {"loss": loss, "accuracy": accuracy}

    return init, step


def inference(dtype: Any, num_classes: int = 1000):
    """(variables, images) -> logits, with the running statistics."""
    model = ResNet50(num_classes, dtype, train=False)
    return model.apply
