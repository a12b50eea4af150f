"""Faults planted in losses and optimisers, each caught and named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

import torch
import torch.nn.functional as F
from torch import nn

import parity
from tests.parity.diagnosis.twins import Flax, Planted, Torch, assert_caught_and_named, filled, linear

LABELS = np.array([0, 2, 1, 2, 0])
WEIGHTS = np.array([1.0, 2.0, 5.0])


def network():
    """A hidden layer, which has matrices and biases."""
    ours = Flax({"a": linear(6, 5), "b": linear(5, 3)}, lambda s, x: s.b(jnp.tanh(s.a(x))))
    theirs = Torch({"a": nn.Linear(6, 5), "b": nn.Linear(5, 3)}, lambda s, x: s.b(s.a(x).tanh()))
    return filled(ours, theirs, (5, 6))


def cross_entropy(smoothing=0.0, reduction=jnp.mean):
    def loss(outputs, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 3), smoothing)
        return reduction(optax.softmax_cross_entropy(outputs, targets))

    return loss


def loss(ours, theirs, targets=LABELS):
    return {"checks": ("gradients",), "loss": (ours, theirs), "targets": targets}


def weighted_by_count(outputs, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return (losses * jnp.asarray(WEIGHTS)[labels]).mean()


def torch_cross_entropy(**options):
    return lambda outputs, labels: F.cross_entropy(outputs, labels, **options)


def torch_weighted(outputs, labels):
    return F.cross_entropy(outputs, labels, weight=torch.from_numpy(WEIGHTS).to(outputs.dtype))


def step(*transforms, torch_optimizer=None, **options):
    settings = {"learning_rate": 0.1, "weight_decay": 0.0, **options}
    transform = optax.chain(*transforms, optax.scale(-1.0))
    optimizer = parity.Optimizer(transform=transform, torch_optimizer=torch_optimizer, **settings)
    return {"checks": ("optimizer",), "optimizer": optimizer, "steps": 4}


def adam(**options):
    return optax.scale_by_adam(**options)


def amsgrad(parameters):
    return torch.optim.Adam(parameters, lr=1.0, amsgrad=True, foreach=False)


def dampened(parameters):
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, dampening=0.9, foreach=False)


def rate(step):
    return 0.1 / (1 + step)


def scheduled(other):
    """A schedule that multiplies the rates that are set into others."""
    return optax.scale_by_schedule(lambda count: other(count) * (1 + count) / 0.1)


FAULTS = (
    Planted("label smoothing missing", "label smoothing is 0, PyTorch's is 0.1", network,
            loss(cross_entropy(), torch_cross_entropy(label_smoothing=0.1))),
    Planted("label smoothing of 0.2", "label smoothing is 0.2, PyTorch's is 0.1", network,
            loss(cross_entropy(0.2), torch_cross_entropy(label_smoothing=0.1))),
    Planted("a sum for a mean", "the loss is reduced by sum, PyTorch's by mean", network,
            loss(cross_entropy(reduction=jnp.sum), torch_cross_entropy())),
    Planted("class weights missing", "the class weights are not applied", network,
            loss(cross_entropy(), torch_weighted)),
    Planted("weights divided by the count", "PyTorch's by the sum of their weights", network,
            loss(weighted_by_count, torch_weighted)),
    Planted("an ignored label counted", "labels of ignore_index 1 are counted", network,
            loss(cross_entropy(), torch_cross_entropy(ignore_index=1))),
    Planted("Adam's epsilon", "Adam's epsilon is 1e-06, PyTorch's is 1e-08", network,
            step(adam(eps=1e-6), kind="adam")),
    Planted("Adam's epsilon under the root", "is added under the square root", network,
            step(adam(eps=0.0, eps_root=1e-8), kind="adam")),
    Planted("AMSGrad off", "AMSGrad is off", network, step(adam(), kind="adam", torch_optimizer=amsgrad)),
    Planted("Adam's second beta", "Adam's second beta is 0.95, PyTorch's is 0.999", network,
            step(adam(b2=0.95), kind="adam")),
    Planted("no dampening", "the momentum is dampened by 0, PyTorch's by 0.9", network,
            step(optax.trace(0.9), torch_optimizer=dampened)),
    Planted("clipped by the global norm", "gradients are clipped by their global norm to 0.1", network,
            step(optax.clip_by_global_norm(0.1), optax.trace(0.9))),
    Planted("clipped value by value", "gradients are clipped value by value to 0.1", network,
            step(optax.clip(0.1), optax.trace(0.9))),
    Planted("clipped after weight decay", "to 0.1 after weight decay is added", network,
            step(optax.add_decayed_weights(0.5), optax.clip_by_global_norm(0.1), optax.trace(0.9), weight_decay=0.5)),
    Planted("no decay of biases", "weight decay leaves out biases", network,
            step(optax.add_decayed_weights(0.5, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)),
                 optax.trace(0.9), weight_decay=0.5)),
    Planted("decay of half the size", "weight decay is half PyTorch's", network,
            step(optax.add_decayed_weights(0.05), optax.trace(0.9), weight_decay=0.1)),
    Planted("the schedule is a step late", "the learning rate is the step before's", network,
            step(optax.trace(0.9), scheduled(lambda count: rate(jnp.maximum(count - 1, 0))), learning_rate=rate)),
    Planted("the schedule changes every other step", "the learning rate changes only every 2 steps", network,
            step(optax.trace(0.9), scheduled(lambda count: rate(count // 2)), learning_rate=rate)),
    Planted("another schedule", "another schedule", network,
            step(optax.trace(0.9), scheduled(lambda count: 0.1 * 0.7**count), learning_rate=rate)),
    Planted("an update of no known rule", None, network,
            step(optax.trace(0.9), optax.scale_by_sign(), learning_rate=rate)),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    assert_caught_and_named(fault)
