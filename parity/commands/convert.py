"""`python -m parity convert SRC DST`."""

import shutil
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import jax
import tyro

from parity.conversion.orbax import read_orbax
from parity.errors import ParityError, printable
from parity.networks import Weights, identified
from parity.options import option_group, parse
from parity.registry import registered


@option_group
@dataclass(frozen=True)
class Arguments:
    """Turn a checkpoint into another format, unchanged.

    The endings of the names choose the formats: .pth, .pt, .safetensors, or no ending for an Orbax directory. The
    weights go through the Flax model, so that every entry has been matched before anything is written. A .safetensors
    file has torchvision's names; the names, order and types that the weights came with are kept with them, and a .pth
    gets them back.

    The names of the classes and the preprocessing of the images are kept with the weights; the options for them put
    others in their place, in .safetensors and Orbax, for every command that reads the file.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """The checkpoint to read."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The checkpoint to write."""
    arch: str | None = None
    """Insist on this architecture; inferred from the shapes by default."""
    prefix: str | None = None
    """Take the network whose names begin with this, such as teacher; needed where the file holds several."""
    names: Literal["original", "torchvision"] = "original"
    """The names in a .pth: those that the weights came with, or torchvision's."""
    force: bool = False
    """Overwrite an existing destination."""


def main(arguments: list[str]) -> int:
    uses = _uses()
    args = _parse(arguments, uses)
    given = {name: getattr(args, name) for name in uses if getattr(args, name) is not None}
    source, destination = args.source, args.destination
    if destination.exists() and not args.force:
        raise ParityError(f"{destination} exists; --force overwrites a checkpoint")
    if not destination.absolute().parent.is_dir():
        raise ParityError(f"{destination.absolute().parent} is not a directory")
    if destination.suffix not in ("", ".safetensors", ".pth", ".pt"):
        raise ParityError(f"{destination}: the name must end in .safetensors, .pth or .pt, or have no ending for Orbax")
    if destination.is_dir():
        _require_checkpoint(destination)
    if given and destination.suffix in (".pth", ".pt"):
        raise ParityError(f"{destination} keeps nothing beside weights; {_options(given)} needs .safetensors or Orbax")
    with jax.enable_x64(True):  # a float64 file stays one
        weights = identified(source, args.prefix)
        if args.arch:
            weights = weights.named(args.arch)
        if given and not hasattr(weights, "used"):
            raise ParityError(f"{_options(given)} is not for {weights.describe()}")
        weights = weights.used(**given) if given else weights
        _write(destination, weights, args.names == "original")
    for note in weights.notes:
        print(printable(note), file=sys.stderr)
    print(printable(f"{source} -> {destination}: {weights.describe()}, {len(weights.origin)} entries"))
    return 0


def _uses() -> dict[str, Any]:
    """{field: its type} of what the registered families can keep beside their weights; of one name, the first."""
    kinds = [family.Use for family in registered().families.values() if hasattr(family, "Use")]
    return {name: hint for kind in reversed(kinds) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _parse(arguments: list[str], uses: dict[str, Any]) -> Any:
    """The command's own arguments, and those of the families, in one flat set of options."""
    options = [(name, hint, field(default=None)) for name, hint in uses.items()]
    together = make_dataclass("Arguments", options, bases=(Arguments,), frozen=True)
    together.__doc__ = Arguments.__doc__
    return parse(together, arguments, prog="python -m parity convert")


def _options(given: dict[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def _require_checkpoint(directory: Path) -> None:
    try:
        read_orbax(directory)
    except ParityError as error:
        message = f"{directory} is a directory that holds no checkpoint, and is kept; choose another destination"
        raise ParityError(message) from error


def _write(destination: Path, weights: Weights, original_names: bool) -> None:
    if not destination.is_dir():
        weights.write(destination, original_names=original_names)
        return
    fresh = destination.with_name(f".{destination.name}-new")
    weights.write(fresh, original_names=original_names)
    shutil.rmtree(destination)
    fresh.rename(destination)
