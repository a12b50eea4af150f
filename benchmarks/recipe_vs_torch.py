"""The first steps of a Fashion-MNIST recipe in float64: this project's training step beside PyTorch's loop.

    python benchmarks/recipe_vs_torch.py fashion_mnist_sgd --plot sgd.png

Both start from the same random weights and see the same batches. While a recipe's first steps overshoot, rounding grows
from step to step; PyTorch therefore runs a second time, with every batch in reverse order. It ends with 1 if a loss of
ours is further from PyTorch's than 1e-9 and than 8 times what the second run's was at most so far, or a parameter or
statistic, relative to its largest value, than 1e-5 and 8 times the second run's.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity import to_torch
from parity.commands.torch_networks import torch_network
from resnet_flax.data import Source, open_source, training_batches
from resnet_flax.models import build_model
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.loss import make_loss
from resnet_flax.training.optimizers import make_optimizer, make_schedule
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.state import Network, create_state, model_arrays
from resnet_flax.training.step import make_train_step

CLASSES = 10
Arrays = dict[str, np.ndarray]


def torch_optimizer(config: TrainConfig, parameters) -> torch.optim.Optimizer:
    """PyTorch's of the same name, with nothing but a constant learning rate."""
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer.optimizer]
    return kind(parameters, lr=config.optimizer.learning_rate)


def follow(
    config: TrainConfig, source: Source, steps: int, say: Callable[..., None] = lambda *_: None
) -> tuple[np.ndarray, list[Arrays]]:
    """Trains ours, PyTorch's, and PyTorch's on reversed batches, by turns; `say` is given each step and its losses.

    Returns:
        the losses (steps, 3), and the three state_dicts at the end.
    """

    def prepare(key, batch):
        # In float64 too: Adam turns the rounding of float32 images into steps of full size.
        return batch["image"].astype(jnp.float64) / 255, jax.nn.one_hot(batch["label"], CLASSES)

    stream = training_batches(source, config.data.train_transform, batch_size=config.batch_size, seed=config.seed)
    losses = []
    with jax.enable_x64(True):
        model = build_model(config.model.name, num_classes=CLASSES, param_dtype=jnp.float64, rngs=nnx.Rngs(config.seed))
        torch_start = {name: torch.tensor(array) for name, array in to_torch(model).items()}
        trained = []
        for _ in range(2):
            theirs = torch_network(config.model.name, num_classes=CLASSES, in_channels=1).double()
            theirs.load_state_dict(torch_start)
            trained.append((theirs, torch_optimizer(config, theirs.parameters())))
        network = Network(model)
        schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps)
        optimizer = make_optimizer(config.optimizer, schedule, network)
        state = create_state(network, network.arrays(model), optimizer, seed=config.seed)
        step = make_train_step(network, optimizer, schedule, make_loss(config.loss), prepare)
        for number, batch in zip(range(1, steps + 1), stream, strict=False):
            state, metrics = step(state, {"image": batch["image"], "label": batch["label"]})
            images = torch.tensor(batch["image"] / 255.0).permute(0, 3, 1, 2)
            labels = torch.tensor(batch["label"]).long()
            theirs = [torch_step(*trained[0], images, labels), torch_step(*trained[1], images.flip(0), labels.flip(0))]
            losses.append((float(metrics["loss"]), *theirs))
            say(number, *losses[-1])
        ours = to_torch(network.model(model_arrays(state)))
    ends = [{name: tensor.numpy() for name, tensor in theirs.state_dict().items()} for theirs, _ in trained]
    return np.array(losses), [ours, *ends]


def torch_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> float:
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def distances(config: TrainConfig, run: Arrays, theirs: Arrays) -> dict[str, float]:
    """Largest difference of every entry from PyTorch's, relative to its largest value.

    A bias in front of a norm has no gradient but rounding, which Adam turns into steps of full size: there it, and the
    running mean that takes it up, are left out.
    """
    rounding = ("conv1.bias", "conv2.bias", "running_mean") if config.optimizer.optimizer == "adam" else ()
    return {
        name: float(abs(run[name] - array).max() / max(abs(array).max(), 1e-300))
        for name, array in theirs.items()
        if not name.endswith(rounding)
    }


def plot(losses: np.ndarray, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4), layout="constrained", dpi=120)
    curves, apart = figure.subplots(1, 2)
    numbers = np.arange(1, len(losses) + 1)
    curves.plot(numbers, losses[:, 1], lw=4, alpha=0.4, label="PyTorch")
    curves.plot(numbers, losses[:, 0], lw=1.2, label="ours")
    curves.set(title=f"{title}: loss", xlabel="step")
    curves.legend()
    for difference, label in zip(relative(losses).T, ("ours", "PyTorch on reversed batches"), strict=True):
        apart.semilogy(numbers, np.maximum(difference, 1e-17), marker=".", lw=1, label=label)
    apart.set(title="relative difference from PyTorch's", xlabel="step")
    apart.legend()
    figure.savefig(path)


def relative(losses: np.ndarray) -> np.ndarray:
    """How far ours, and PyTorch's second run, are from PyTorch: (steps, 2)."""
    return abs(losses[:, [0, 2]] / losses[:, [1]] - 1)


def follows(config: TrainConfig, losses: np.ndarray, ends: list[Arrays]) -> bool:
    """Whether ours stays as near to PyTorch as rounding lets PyTorch itself; False for NaN."""
    apart, noise = relative(losses).T
    ours, theirs, again = ends
    far, own = distances(config, ours, theirs), distances(config, again, theirs)
    return bool(
        (apart <= np.maximum(1e-9, 8 * np.maximum.accumulate(noise))).all()
        and all(far[name] <= max(1e-5, 8 * own[name]) for name in far)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["fashion_mnist_adam", "fashion_mnist_sgd"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--image-size", type=int, help="the recipe's own by default")
    parser.add_argument("--batch-size", type=int, help="the recipe's own by default")
    parser.add_argument("--plot", type=Path, help="draw the losses here")
    args = parser.parse_args()
    config = RECIPES[args.recipe].config
    config = replace(config, batch_size=args.batch_size or config.batch_size)
    if args.image_size:
        transform = replace(config.data.train_transform, size=args.image_size)
        config = replace(config, data=replace(config.data, train_transform=transform))
    size = config.data.train_transform.size
    title = f"{args.recipe}, {size} pixels, batch {config.batch_size}, float64"
    print(title, flush=True)

    def say(number: int, ours: float, theirs: float, again: float) -> None:
        apart, own = abs(ours / theirs - 1), abs(again / theirs - 1)
        print(f"step {number:3}  ours {ours:.12f}  PyTorch {theirs:.12f}  apart {apart:.1e}, PyTorch's own {own:.1e}")

    start = time.perf_counter()
    losses, ends = follow(config, open_source(config.data.data, "train"), args.steps, say)
    far, own = (distances(config, end, ends[1]) for end in (ends[0], ends[2]))
    furthest = max(far, key=far.__getitem__)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    verdict = follows(config, losses, ends)
    print(f"of {len(far)} tensors afterwards {furthest} is the furthest, by {far[furthest]:.1e}; ", end="")
    print(f"PyTorch's own run by at most {max(own.values()):.1e}")
    print(f"{'as near as' if verdict else 'NOT as near as'} PyTorch is to itself, after {minutes}:{seconds:02}")
    if args.plot:
        plot(losses, args.recipe, args.plot)
    return 0 if verdict else 1


if __name__ == "__main__":
    raise SystemExit(main())
