"""`python -m parity check ARCH`."""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from parity.errors import ParityError, needs_extra
from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
from resnet_flax.errors import UserError
from resnet_flax.models import build_model, get_architecture


@dataclass(frozen=True)
class Arguments:
    """Prove that a network of ours and its PyTorch original agree.

    Without --weights both get random weights and statistics that hide nothing. Exit status 0 if everything agrees, 1 if
    not, 2 if the two cannot be compared.
    """

    architecture: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ARCH")]
    """resnet18, resnet50, resnext50_32x4d, ... (python -m resnet_flax models lists them)."""
    weights: Path | None = None
    """A checkpoint to check with: .pth, .safetensors or an Orbax directory."""
    checks: str = "forward,activations,gradients,batch_stats"
    """Which checks, with commas between them."""
    precision: Literal["float64", "float32", "bfloat16"] = "float64"
    """float64 finds faults; the others show what a precision costs, next to what it costs PyTorch."""
    batch: int = 4
    """Images in the batch."""
    size: int = 64
    """Height and width of the images."""
    image: Path | None = None
    """Real input: an image file, from which the batch is cut."""
    small_images: bool = False
    """A 3x3 stem without max-pool on both sides."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """For the checks optimizer and trajectory; sgd has momentum 0.9."""
    learning_rate: float = 0.05
    """Its base: it rises over two steps, then follows a cosine (trajectory) or is halved each step (optimizer)."""
    weight_decay: float = 1e-2
    steps: int = 5
    """Of optimizer and trajectory. The trajectory is on real images, scikit-learn's digits."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where both frameworks compute."""
    seed: int = 0
    """Of the random weights and inputs."""
    json: Path | None = None
    """Write everything measured to this file."""
    html: Path | None = None
    """Write a page with plots to this file."""


def main(arguments: list[str]) -> int:
    args = tyro.cli(Arguments, prog="python -m parity check", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    get_architecture(args.architecture)  # before anything slow
    _require_writable(args.json, args.html)
    if min(args.batch, args.size, args.steps) < 1:
        raise UserError(f"--batch {args.batch}, --size {args.size} and --steps {args.steps} must be positive")
    with needs_extra("torch", "checking against PyTorch"):
        import torch
        import torchvision  # noqa: F401
    _choose_device(args.device, torch)

    from parity.checks.optimizers import Optimizer
    from parity.checks.table import check
    from parity.reports.json import write_json
    from parity.reports.terminal import as_renderable
    from resnet_flax.parity_networks import digit_batches, train

    checks = [name.strip() for name in args.checks.split(",") if name.strip()]
    flax_model, torch_model, shape = networks(args.architecture, args.weights, args.seed, args.small_images)
    if "trajectory" in checks and shape["num_classes"] < 10:
        raise UserError(f"a trajectory trains on ten digits, and the weights have {shape['num_classes']} classes")
    inputs = images(args, shape)
    labels = np.random.default_rng(args.seed).integers(0, shape["num_classes"], len(inputs))
    report = check(
        flax_model,
        torch_model,
        inputs,
        labels,
        checks=checks,
        precision=args.precision,
        optimizer=Optimizer(args.optimizer, rate(args, checks), weight_decay=args.weight_decay),
        steps=args.steps,
        batches=digit_batches(args.steps, args.batch, args.size, shape["in_channels"])
        if "trajectory" in checks
        else None,
        train=train,
        device="cuda" if args.device == "gpu" else "cpu",
    )
    weights = str(args.weights or f"random, seed {args.seed}")
    network = f"{args.architecture} ({args.weights})" if args.weights else args.architecture
    report.settings |= {"architecture": args.architecture, "weights": weights}
    report.settings |= {"flax network": network, "torch network": args.architecture}
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(as_renderable(report))
    if args.json:
        write_json(report, args.json)
    if args.html:
        from parity.reports.html import write_html

        write_html(report, args.html)
    return 0 if report.passed else 1


def rate(args: Arguments, checks: list[str]) -> Any:
    """The learning rate: a number, which each step halves, or for a trajectory a warm-up and a cosine."""
    if "trajectory" not in checks:
        return args.learning_rate

    def cosine(step: int) -> float:
        return args.learning_rate * min((step + 1) / 2, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))

    return cosine


def networks(
    name: str, weights: Path | None, seed: int, small_images: bool = False
) -> tuple[nnx.Module, Any, dict[str, Any]]:
    """The Flax network, the PyTorch one, and the options that both were built with."""
    from parity.sides.random_weights import randomize
    from resnet_flax.models.originals import torch_network

    row = get_architecture(name)
    if weights is None:
        shape: dict[str, Any] = {
            "num_classes": row.num_classes,
            "in_channels": row.in_channels,
            "small_images": small_images,
        }
        torch_model = torch_network(name, **shape)
        flax_model = nnx.eval_shape(lambda: build_model(name, small_images=small_images, rngs=nnx.Rngs(0)))
        randomize(flax_model, torch_model, seed=seed)
        return flax_model, torch_model, shape

    import torch

    from resnet_flax.weights.files import read_weights

    with jax.enable_x64(True):
        read = read_weights(weights)
        if not row.has_shapes_of(get_architecture(read.identity.architecture)):
            raise UserError(f"{weights} holds a {read.identity.architecture}, not a {name}")
        flax_model = read.to_model()
    identity = read.identity
    if not identity.num_classes:
        raise UserError(f"{weights} has no head, and PyTorch's {name} has one: nothing to compare")
    shape = {
        "num_classes": identity.num_classes,
        "in_channels": identity.in_channels,
        "small_images": identity.small_images,
    }
    torch_model = torch_network(name, **shape)
    torch_model.load_state_dict({key: torch.tensor(np.array(value)) for key, value in read.state_dict.items()})
    return flax_model, torch_model, shape


def images(args: Arguments, shape: dict[str, Any]) -> np.ndarray:
    """float32 images (batch, size, size, channels): random, or cut from a file and normalised."""
    from parity.sides.random_weights import random_inputs

    if args.image is None:
        return random_inputs((args.batch, args.size, args.size, shape["in_channels"]), seed=args.seed)
    from PIL import Image, UnidentifiedImageError

    from resnet_flax.data import evaluation_transform

    try:
        picture = Image.open(args.image).convert("RGB" if shape["in_channels"] == 3 else "L")
    except FileNotFoundError as error:
        raise UserError(f"--image {args.image} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"--image {args.image} cannot be read as an image: {error}") from error
    # One picture, resized a little differently for each example of the batch.
    crops = [
        evaluation_transform(resize_size=args.size + args.size * index // 8, crop_size=args.size)(picture)
        for index in range(1, args.batch + 1)
    ]
    pixels = np.stack(crops).reshape(args.batch, args.size, args.size, shape["in_channels"]) / np.float32(255)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if shape["in_channels"] == 3 else ((0.5,), (0.5,))
    return ((pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)


def _choose_device(device: str, torch: Any) -> None:
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    # JAX would otherwise take three quarters of the memory at once and leave PyTorch too little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not torch.cuda.is_available():
        raise UserError("--device gpu: PyTorch finds no GPU")
    if jax.default_backend() != "gpu":
        raise UserError("--device gpu: JAX finds no GPU; install resnet-flax with the extra cuda13 or cuda12")


def _require_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise ParityError(f"{path.absolute().parent} is not a directory")
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise ParityError(f"cannot write {path}: it is {'a directory' if path.is_dir() else 'not permitted'}")
