"""`python -m parity inspect SRC`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.conversion.files import require_writable
from parity.errors import ParityError, printable
from parity.networks import Weights, identified
from parity.options import Pixels, option_group, parse
from parity.trimmed import Trimmed

PLOTS = (".png", ".svg", ".pdf")


@option_group
@dataclass(frozen=True)
class Arguments:
    """Show what a checkpoint holds: network, classes, naming, types, and anything odd."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file, a folder with one, or an Orbax directory."""
    prefix: str | None = None
    """Show the network whose names begin with this, such as teacher; needed where the file holds several."""
    images: Path | None = None
    """A folder of photographs like those that the network was trained on, 16 or more: find out from the norms'
    statistics which preprocessing and which options the weights expect."""
    size: Pixels | None = None
    """With --images, the height and width that they are resized to; by default those that the network is for, and what
    is smaller and of one size is left as it is."""
    json: Path | None = None
    """With --images, write what was found to this file."""
    html: Path | None = None
    """With --images, write a page with a plot to this file."""
    plot: Path | None = None
    """With --images, write the plot to this file: .png, .svg or .pdf."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m parity inspect")
    outputs = {"--json": args.json, "--html": args.html, "--plot": args.plot}
    if args.images is None and (given := [name for name, path in outputs.items() if path]):
        raise ParityError(f"{given[0]} needs --images: a folder of photographs to run through the network")
    require_writable(*outputs.values())
    if args.plot and args.plot.suffix not in PLOTS:
        raise ParityError(f"--plot {args.plot}: the ending must be one of {', '.join(PLOTS)}")
    with jax.enable_x64(True):
        weights = identified(args.source, args.prefix)
        rows = weights.rows()
    files = [args.source] if args.source.is_file() else [f for f in args.source.rglob("*") if f.is_file()]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("file", Text(printable(args.source) + f" ({sum(f.stat().st_size for f in files) / 1e6:.1f} MB)"))
    for heading, text in rows:
        table.add_row(Text(printable(heading)), Text(printable(text)))
    console = Console(highlight=False, markup=False)
    console.print(Trimmed(table))
    for note in weights.notes:
        console.print(printable(note), soft_wrap=True)
    console.print(f"every entry fits {weights.describe().partition(',')[0]}")
    if args.images is not None:
        _find_out(args, args.images, weights, console)
    return 0


def _find_out(args: Arguments, folder: Path, weights: Weights, console: Console) -> None:
    from parity.fingerprints import output
    from parity.fingerprints.fingerprint import of_weights
    from parity.fingerprints.photographs import read_folder

    images, notes = read_folder(folder, weights.in_channels)
    for note in notes:
        console.print(printable(note), soft_wrap=True)
    report = of_weights(weights, images, size=args.size)
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False, emoji=False).print(Trimmed(output.as_renderable(report)))
    if args.json:
        output.write_json(report, args.json)
    if args.plot:
        output.write_plot(report, args.plot)
    if args.html:
        output.write_html(report, args.html)
