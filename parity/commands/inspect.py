"""`python -m parity inspect SRC`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table

from resnet_flax.weights.files import read_weights


@dataclass(frozen=True)
class Arguments:
    """Say what a checkpoint holds: network, classes, naming, types, and anything odd."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file, or an Orbax directory."""


def main(arguments: list[str]) -> int:
    args = tyro.cli(Arguments, prog="python -m parity inspect", args=arguments)
    with jax.enable_x64(True):
        weights = read_weights(args.source)
        weights.to_model()  # raises unless every entry fits
    files = [args.source] if args.source.is_file() else [f for f in args.source.rglob("*") if f.is_file()]
    state_dict, identity = weights.state_dict, weights.identity
    parameters = sum(a.size for n, a in state_dict.items() if n.endswith((".weight", ".bias")))
    dtypes = Counter(array.dtype.name for array in state_dict.values())

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("file", f"{args.source} ({sum(f.stat().st_size for f in files) / 1e6:.1f} MB)")
    table.add_row("architecture", identity.architecture)
    table.add_row("classes", str(identity.num_classes) if identity.num_classes else "none (no head)")
    table.add_row("input channels", f"{identity.in_channels}")
    table.add_row("stem", "3x3, no max-pool" if identity.small_images else "7x7 stride 2, max-pool")
    table.add_row("parameters", f"{parameters:,}")
    table.add_row("entries", ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()))
    table.add_row(
        "names", f"{weights.naming.scheme}" + (f", prefix {weights.naming.prefix!r}" if weights.naming.prefix else "")
    )
    for key, value in weights.metadata.items():
        table.add_row(key, value if len(value) <= 60 else value[:57] + "...")
    console = Console(highlight=False)
    console.print(table)
    for note in weights.notes:
        console.print(str(note))
    console.print(f"every entry fits {identity.architecture}")
    return 0
