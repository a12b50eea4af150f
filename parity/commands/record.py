"""`python -m parity record TARGET --out FILE`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from parity.commands.targets import load_target
from parity.errors import ParityError, needs_extra, printable
from parity.networks import named_pair
from parity.options import Pixels, PositiveInt, Seed, option_group, parse


@option_group
@dataclass(frozen=True)
class Arguments:
    """Write what a network gives, with its noise floors, to a file that `check --reference` takes.

    TARGET is package.module:function for a function of yours that returns (network, inputs), or a registered name, of
    which the PyTorch original is recorded.
    """

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """package.module:function, or a registered name."""
    out: Path
    """The file to write: .safetensors."""
    checks: str = "forward,activations,gradients,batch_stats"
    """The checks that the file is to serve, separated by commas; optimizer may be one."""
    precision: Literal["float64", "float32", "bfloat16"] = "float64"
    """In which the candidate will be checked."""
    only: str | None = None
    """Keep only activations and gradients whose names match one of these patterns, separated by commas."""
    weights: Literal["values", "digest"] = "values"
    """Keep the weights, or their SHA-256."""
    steps: PositiveInt = 5
    """Steps of the check optimizer."""
    batch: PositiveInt = 4
    """Images in the batch of a registered network."""
    size: Pixels = 64
    """Their height and width."""
    checkpoint: Path | None = None
    """Weights of a registered network; random ones by default."""
    seed: Seed = 0
    """Seeds random weights and inputs."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m parity record")
    jax.config.update("jax_platforms", "cpu")
    from parity.checks.record import record

    if ":" in args.target:
        parts = load_target(args.target)
        if len(parts) != 2:
            raise ParityError(f"{args.target} must return (network, inputs); it returned {len(parts)} values")
        network, inputs = parts
    else:
        with needs_extra("torch", "recording a PyTorch network"):
            from parity.sides.random_weights import random_inputs
        pair = named_pair(args.target, weights=args.checkpoint, seed=args.seed)
        network, inputs = pair.torch_model, random_inputs((args.batch, pair.channels, args.size, args.size))
    record(
        network,
        inputs,
        args.out,
        checks=args.checks.split(","),
        precision=args.precision,
        only=args.only.split(",") if args.only else (),
        weights=args.weights,
        steps=args.steps,
        seed=args.seed,
    )
    megabytes = args.out.stat().st_size / 1e6
    print(printable(f"{args.out}: {args.target}, {args.checks} in {args.precision}, {megabytes:.2f} MB"))
    return 0
