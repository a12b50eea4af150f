"""What the check "trajectory" of `python -m parity check` trains with: this project's own step, on real images."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.conversion.naming import leaves
from resnet_flax.data.arrays import read_digits
from resnet_flax.models import ResNet
from resnet_flax.training.config import LossConfig, OptimizerConfig
from resnet_flax.training.loss import make_loss
from resnet_flax.training.optimizers import make_optimizer
from resnet_flax.training.state import Network, create_state, model_arrays
from resnet_flax.training.step import make_train_step

Batch = tuple[jax.Array, jax.Array]


def train(model: ResNet, batches: Sequence[Batch], optimizer: Any) -> list[float]:
    """Trains `model` in place with this package's step; returns the loss before each update.

    Args:
        batches: (images (N, H, W, C), labels (N,)) of each step.
        optimizer: a `parity.Optimizer`.
    """
    rates = jnp.asarray([optimizer.learning_rate_at(step) for step in range(len(batches))], batches[0][0].dtype)
    schedule = lambda step: rates[step]  # noqa: E731
    kind: Any = optimizer.kind
    if kind == "sgd" and optimizer.momentum:
        kind = "nesterov" if optimizer.nesterov else "momentum"
    config = OptimizerConfig(
        optimizer=kind,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
    )
    network = Network(model)
    arrays = network.arrays(model)

    def prepare(key: jax.Array, batch: Mapping[str, jax.Array]) -> Batch:
        return batch["image"], jax.nn.one_hot(batch["label"], model.num_classes, dtype=batch["image"].dtype)

    transform = make_optimizer(config, schedule, network)
    step = make_train_step(network, transform, schedule, make_loss(LossConfig()), prepare)
    # Copies, because the step takes its state's buffers over.
    state = create_state(network, jax.tree.map(jnp.copy, arrays), transform, seed=0)
    losses = []
    for image, label in batches:
        state, metrics = step(state, {"image": image, "label": label})
        losses.append(float(metrics["loss"]))
    trained = model_arrays(state)
    for leaf in leaves(model):
        leaf.variable.set_value(trained[leaf.path])
    return losses


def digit_batches(steps: int, batch: int, size: int, channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of scikit-learn's handwritten digits: float32 (batch, size, size, channels) and labels, shuffled."""
    levels, labels = read_digits()
    images = jnp.asarray(levels[..., None] / 16, jnp.float32)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(1 + steps * batch // len(images))])
    result = []
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        pixels = jax.image.resize(images[chosen], (batch, size, size, 1), "bilinear")
        standardised = (np.asarray(pixels) - np.float32(0.3)) / np.float32(0.38)
        result.append((np.repeat(standardised, channels, axis=-1), labels[chosen]))
    return result
