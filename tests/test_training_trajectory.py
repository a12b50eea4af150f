"""The Fashion-MNIST recipe with Adam, step by step beside a PyTorch loop in float64 from the same start."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parity import to_torch
from resnet_flax.data import open_source, training_batches
from resnet_flax.models import build_model
from resnet_flax.training.loss import make_loss
from resnet_flax.training.optimizers import make_optimizer, make_schedule
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.state import Network, create_state, model_arrays
from resnet_flax.training.step import make_train_step

torch = pytest.importorskip("torch")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"),
    [(28, 6, 3), (96, 256, 50)],
)
@pytest.mark.full
def test_recipe_follows_torch(size, batch_size, steps):
    from tests.torch_models import ResidualNet

    config = RECIPES["fashion_mnist_adam"].config
    transform = replace(config.data.train_transform, size=size)
    source = open_source(config.data.data if FASHION_MNIST.exists() else f"synthetic:{size}x{size}x1:600", "train")
    stream = training_batches(source, transform, batch_size=batch_size, seed=0)
    given = [next(stream) for _ in range(steps)]

    def prepare(key, batch):
        # In float64 too: Adam turns the rounding of float32 images into steps of full size.
        return batch["image"].astype(jnp.float64) / 255, jax.nn.one_hot(batch["label"], 10)

    with jax.enable_x64(True):
        model = build_model(config.model.name, num_classes=10, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        theirs = ResidualNet().double()
        theirs.load_state_dict({name: torch.tensor(array) for name, array in to_torch(model).items()})
        network = Network(model)
        schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps)
        optimizer = make_optimizer(config.optimizer, schedule, network)
        state = create_state(network, network.arrays(model), optimizer, seed=0)
        step = make_train_step(network, optimizer, schedule, make_loss(config.loss), prepare)
        losses = []
        for batch in given:
            label = batch["label"] % 10
            state, metrics = step(state, {"image": batch["image"], "label": label})
            losses.append(float(metrics["loss"]))
        ours = to_torch(network.model(model_arrays(state)))

    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for number, batch in enumerate(given):
        images = torch.tensor(batch["image"] / 255.0).permute(0, 3, 1, 2)
        loss = torch.nn.functional.cross_entropy(theirs(images), torch.tensor(batch["label"] % 10).long())
        assert losses[number] == pytest.approx(loss.item(), rel=1e-9), f"step {number + 1}"
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, tensor in theirs.state_dict().items():
        if name.endswith("conv1.bias") or name.endswith("conv2.bias"):
            continue  # in front of a norm: no gradient but rounding, which Adam turns into steps of full size
        if name.endswith("running_mean"):
            continue  # holds that bias
        np.testing.assert_allclose(ours[name], tensor.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)
