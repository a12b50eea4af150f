"""The first steps of a Fashion-MNIST recipe in float64: this project's training step beside PyTorch's loop.

    python benchmarks/recipe_vs_torch.py fashion_mnist_sgd --plot sgd.png

Both start from the same random weights and see the same batches. Ours trains twice: on its own, and with every step
from the parameters and statistics that PyTorch has reached. Where a recipe's first steps overshoot, the former drift
apart by rounding alone, as two runs of PyTorch would; the latter cannot. It ends with 1 if a loss of the latter differs
from PyTorch's by more than 1e-9, or a parameter or statistic after a step by more than 1e-5 of its largest value.
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

from parity import to_flax, to_torch
from resnet_flax.data import Source, open_source, training_batches
from resnet_flax.models import build_model
from resnet_flax.models.originals import torch_network
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
) -> tuple[np.ndarray, dict[str, float]]:
    """Trains for `steps` steps, by turns; `say` is given each step and its losses.

    Returns:
        the losses (steps, 3): PyTorch's, ours from PyTorch's state, ours on its own; and for every tensor how far the
        second was from PyTorch's after a step, at most.
    """

    def prepare(key, batch):
        # In float64 too: Adam turns the rounding of float32 images into steps of full size.
        return batch["image"].astype(jnp.float64) / 255, jax.nn.one_hot(batch["label"], CLASSES)

    stream = training_batches(source, config.data.train_transform, batch_size=config.batch_size, seed=config.seed)
    losses, far = [], {}
    with jax.enable_x64(True):
        model = build_model(config.model.name, num_classes=CLASSES, param_dtype=jnp.float64, rngs=nnx.Rngs(config.seed))
        theirs = torch_network(config.model.name, num_classes=CLASSES, in_channels=1).double()
        theirs.load_state_dict({name: torch.tensor(array) for name, array in to_torch(model).items()})
        updates = torch_optimizer(config, theirs.parameters())
        network = Network(model)
        schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps)
        optimizer = make_optimizer(config.optimizer, schedule, network)
        alone = create_state(network, network.arrays(model), optimizer, seed=config.seed)
        from_theirs = jax.tree.map(jnp.copy, alone)  # a step is given its state's memory
        step = make_train_step(network, optimizer, schedule, make_loss(config.loss), prepare)
        for number, batch in zip(range(1, steps + 1), stream, strict=False):
            given = {"image": batch["image"], "label": batch["label"]}
            alone, metrics = step(alone, given)
            arrays = network.arrays(to_flax(theirs.state_dict(), model))
            for group in ("params", "statistics"):
                from_theirs[group] = {name: arrays[name] for name in from_theirs[group]}
            from_theirs, metrics_from_theirs = step(from_theirs, given)
            loss = torch.nn.functional.cross_entropy(
                theirs(torch.tensor(batch["image"] / 255.0).permute(0, 3, 1, 2)), torch.tensor(batch["label"]).long()
            )
            updates.zero_grad()
            loss.backward()
            updates.step()
            losses.append((loss.item(), float(metrics_from_theirs["loss"]), float(metrics["loss"])))
            say(number, *losses[-1])
            ours = to_torch(network.model(model_arrays(from_theirs)))
            for name, distance in distances(config, ours, theirs.state_dict()).items():
                far[name] = float(np.maximum(far.get(name, 0.0), distance))  # NaN stays NaN
    return np.array(losses), far


def distances(config: TrainConfig, ours: Arrays, theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of every entry from PyTorch's, relative to its largest value.

    A bias in front of a norm has no gradient but rounding, which Adam turns into steps of full size: there it, and the
    running mean that takes it up, are left out.
    """
    rounding = ("conv1.bias", "conv2.bias", "running_mean") if config.optimizer.optimizer == "adam" else ()
    wanted = {name: tensor.numpy() for name, tensor in theirs.items() if not name.endswith(rounding)}
    return {
        name: float(abs(ours[name] - array).max() / max(abs(array).max(), 1e-300)) for name, array in wanted.items()
    }


def plot(losses: np.ndarray, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4), layout="constrained", dpi=120)
    curves, apart = figure.subplots(1, 2)
    numbers = np.arange(1, len(losses) + 1)
    curves.plot(numbers, losses[:, 0], lw=4, alpha=0.4, label="PyTorch")
    curves.plot(numbers, losses[:, 2], lw=1.2, label="ours")
    curves.set(title=f"{title}: loss", xlabel="step")
    curves.legend()
    for difference, label in zip(relative(losses).T, ("ours, each step from PyTorch's state", "ours"), strict=True):
        apart.semilogy(numbers, np.maximum(difference, 1e-17), marker=".", lw=1, label=label)
    apart.set(title="relative difference from PyTorch's", xlabel="step")
    apart.legend()
    figure.savefig(path)


def relative(losses: np.ndarray) -> np.ndarray:
    """How far ours are from PyTorch's: (steps, 2)."""
    return abs(losses[:, 1:] / losses[:, :1] - 1)


def follows(losses: np.ndarray, far: dict[str, float]) -> bool:
    """Whether every step from PyTorch's state ends where PyTorch's does; False for NaN."""
    return bool((relative(losses)[:, 0] <= 1e-9).all()) and all(distance <= 1e-5 for distance in far.values())


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

    def say(number: int, theirs: float, ours: float, alone: float) -> None:
        apart, free = abs(ours / theirs - 1), abs(alone / theirs - 1)
        print(f"step {number:3}  PyTorch {theirs:.12f}  ours {ours:.12f}, apart {apart:.1e}; on its own {free:.1e}")

    start = time.perf_counter()
    losses, far = follow(config, open_source(config.data.data, "train"), args.steps, say)
    furthest = max(far, key=far.__getitem__)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    verdict = follows(losses, far)
    print("every step agrees" if verdict else "NOT every step agrees", end="")
    print(f": losses to {relative(losses)[:, 0].max():.1e}, ", end="")
    print(f"{len(far)} tensors to {far[furthest]:.1e} ({furthest}); {minutes}:{seconds:02}")
    if args.plot:
        plot(losses, args.recipe, args.plot)
    return 0 if verdict else 1


if __name__ == "__main__":
    raise SystemExit(main())
