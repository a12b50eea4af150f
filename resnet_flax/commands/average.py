"""`python -m resnet_flax average A B ... --out F`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from parity.conversion.checkpoints import write_checkpoint
from parity.errors import printable
from parity.options import option_group, parse
from resnet_flax.errors import UserError
from resnet_flax.weights.average import average_weights
from resnet_flax.weights.metadata import metadata_of


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write the mean of several checkpoints of one network, such as the last ones of a run.

    Names of classes and preprocessing are the first checkpoint's.
    """

    weights: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")]
    """Checkpoints: .safetensors or .pth files, or Orbax directories."""
    out: Path
    """The .safetensors or .pth file to write."""
    prefix: str | None = None
    """What the names of the network begin with in files that hold several, such as teacher."""
    force: bool = False
    """Overwrite an existing file."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m resnet_flax average")
    if args.out.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{args.out}: the name must end in .safetensors, .pth or .pt")
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} exists; --force overwrites it")
    mean = average_weights(args.weights, args.prefix)
    for note in mean.warnings():
        print(printable(note), file=sys.stderr)
    metadata = mean.metadata | metadata_of(mean.identity.architecture, options=mean.options)
    write_checkpoint(args.out, mean.state_dict, metadata)
    print(printable(f"{args.out}: the mean of {len(args.weights)} checkpoints of {mean.identity}"))
    return 0
