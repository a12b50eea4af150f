"""`python -m parity inspect SRC`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.errors import printable
from parity.networks import identified
from parity.options import option_group, parse


@option_group
@dataclass(frozen=True)
class Arguments:
    """Show what a checkpoint holds: network, classes, naming, types, and anything odd."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file, a folder with one, or an Orbax directory."""
    prefix: str | None = None
    """Show the network whose names begin with this, such as teacher; needed where the file holds several."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m parity inspect")
    with jax.enable_x64(True):
        weights = identified(args.source, args.prefix)
        rows = weights.rows()
    files = [args.source] if args.source.is_file() else [f for f in args.source.rglob("*") if f.is_file()]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("file", Text(printable(args.source) + f" ({sum(f.stat().st_size for f in files) / 1e6:.1f} MB)"))
    for heading, text in rows:
        table.add_row(Text(printable(heading)), Text(printable(text)))
    console = Console(highlight=False, markup=False)
    console.print(table)
    for note in weights.notes:
        console.print(printable(note))
    console.print(f"every entry fits {weights.describe().partition(',')[0]}")
    return 0
