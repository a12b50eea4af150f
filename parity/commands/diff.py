"""`python -m parity diff A B`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.checks.relations import relation
from parity.conversion.checkpoints import read_checkpoint
from parity.errors import ParityError, printable
from parity.options import option_group, parse
from parity.trimmed import Trimmed

SHOWN = 40


@option_group
@dataclass(frozen=True)
class Arguments:
    """Compare two checkpoints, or two recordings, tensor by tensor. Exit status 0 if they are equal, 1 if not."""

    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """A .safetensors or .pth file."""
    second: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """Another one."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m parity diff")
    ours, theirs = read_checkpoint(args.first), read_checkpoint(args.second)
    if ours.metadata.get("format") != theirs.metadata.get("format") and "parity-recording" in (
        ours.metadata.get("format"),
        theirs.metadata.get("format"),
    ):
        raise ParityError(f"of {args.first} and {args.second} one is a recording and one a checkpoint")
    rows = compared(ours.tensors, theirs.tensors)
    different = [(name, words) for name, words in rows if words != "equal"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, words in different[:SHOWN]:
        table.add_row(Text(printable(name)), Text(words))
    console = Console(highlight=False, markup=False, width=None if different else 100)
    if different:
        console.print(Trimmed(table))
    if len(different) > SHOWN:
        console.print(f"and {len(different) - SHOWN} more")
    console.print(f"{len(rows) - len(different)} of {len(rows)} tensors are equal")
    return 1 if different else 0


def compared(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """[(name, how B's tensor follows from A's)], in A's order and then what B has alone."""
    rows = [(name, relation(array, theirs[name]) if name in theirs else "only in A") for name, array in ours.items()]
    return rows + [(name, "only in B") for name in theirs if name not in ours]
