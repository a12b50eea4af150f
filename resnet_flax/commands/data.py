"""`python -m resnet_flax data show` and `data write`: describe a data set, or write it in another form."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from parity.conversion.files import write_text
from parity.errors import needs_extra, printable
from parity.options import NonNegativeInt, check_ranges, option_group, wrapped_help
from resnet_flax.data.source import Source, SourceOptions
from resnet_flax.data.specs import FORMS, KINDS, WRITABLE, open_source, writer_of
from resnet_flax.errors import UserError
from resnet_flax.figures import drawn
from resnet_flax.text import PlainConsole, to_json

if TYPE_CHECKING:
    _Format = str
else:
    _Format = Literal[WRITABLE]
_Options = Annotated[SourceOptions, tyro.conf.arg(name="")]


@option_group
@dataclass(frozen=True)
class Show:
    """Prints the images per class, image sizes, and channel means and standard deviations of a data set."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC", help=f"{FORMS}.")]
    split: str = "train"
    """train, val (also validation, valid, dev) or test."""
    data_dir: Path | None = None
    """The directory of TFDS data sets; ~/tensorflow_datasets by default."""
    limit: NonNegativeInt = 2000
    """Number of images to decode for sizes and means; 0 decodes all, which also finds every damaged one."""
    sheet: Path | None = None
    """Write a contact sheet to this PNG file."""
    json: Path | None = None
    """Write the figures to this JSON file."""
    options: _Options = field(default_factory=SourceOptions)


@option_group
@dataclass(frozen=True)
class Write:
    """Writes all splits of a data set in a form that is read fast.

    tfds: a TFDS data set in array_record, which tfds:NAME reads. hf: what `save_to_disk` of Hugging Face's datasets
    writes, parquet: files as the hub has them, wds: webdataset's tar files; each to a new directory.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """The data set, as for `data show`."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """tfds: the new data set's name, of lower-case letters, digits and _. Otherwise the directory to write."""
    format: _Format = "tfds"
    """What to write."""
    data_dir: Path = Path("~/tensorflow_datasets")
    """The directory to write a TFDS data set to, and that of a tfds: source."""
    options: _Options = field(default_factory=SourceOptions)


@contextmanager
def progress(label: str, total: int) -> Generator[Callable[[], None]]:
    """Yields a function that advances a progress bar, which is shown on stderr if that is a terminal."""
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = PlainConsole(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def say(text: str) -> None:
    print(printable(text))


def summary(source: Source) -> str:
    """One line: the set, the split, its size, and where it is."""
    return f"{source.spec} {source.split}: {len(source):,} images, {source.num_classes} classes (from {source.origin})"


def show(arguments: Show) -> int:
    from resnet_flax.data.describe import contact_sheet, describe

    if arguments.sheet is not None:
        with needs_extra("train", "a contact sheet"):
            import matplotlib  # noqa: F401
    for path in (arguments.sheet, arguments.json):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no directory {path.parent}")
    source = open_source(arguments.data, arguments.split, data_dir=arguments.data_dir, options=arguments.options)
    limit = min(arguments.limit or len(source), len(source))
    with progress("decoding", limit) as advance:
        figures = describe(source, limit=limit, on_sample=advance)
    say(summary(source))
    for note in source.notes():
        say(f"note: {note}")
    channels, sizes = source.channels, size_range(figures.smallest, figures.largest)
    say(
        f"{channels} channel{'s' * (channels > 1)}, sizes {sizes} "
        f"(height x width, {figures.looked_at:,} images decoded)"
    )
    say(f"mean {numbers(figures.mean)}  std {numbers(figures.std)}  (pixels in [0, 1])")
    names = [printable(name).replace("\n", "\\n") for name in figures.counts]
    width, most = max(map(len, names)), max(figures.counts.values())
    for name, count in list(zip(names, figures.counts.values(), strict=True))[:50]:
        print(f"  {name:<{width}} {count:>9,} {'#' * math.ceil(30 * count / most)}")
    if len(figures.counts) > 50:
        least = min(figures.counts.values())
        print(f"  ... and {len(figures.counts) - 50} more classes, {least:,} to {most:,} images each")
    for message in figures.damaged:
        say(f"damaged: {message}")
    if arguments.json:
        row = {"data": source.spec, "split": source.split, "images": len(source), **asdict(figures)}
        write_text(arguments.json, to_json(row, indent=1) + "\n")
    if (sheet := arguments.sheet) is not None:
        is_drawn, note = drawn(sheet, lambda: contact_sheet(source, sheet))
        if not is_drawn:  # last, because everything else is done
            raise UserError(note)
        say(f"contact sheet: {sheet}")
        if note:
            say(f"note: {note}")
    return 1 if figures.damaged else 0


def size_range(smallest: tuple[int, int], largest: tuple[int, int]) -> str:
    small, large = (f"{height}x{width}" for height, width in (smallest, largest))
    return small if small == large else f"{small} to {large}"


def numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def write(arguments: Write) -> int:
    write_set = writer_of(arguments.format)

    def opened(split: str) -> Source:
        return open_source(arguments.data, split, data_dir=arguments.data_dir, options=arguments.options)

    train = opened("train")
    splits = {split: train if split == "train" else opened(split) for split in train.splits}
    with progress("writing", sum(map(len, splits.values()))) as advance:
        path = write_set(arguments.name, arguments.data_dir, splits, on_sample=advance)
    for source in splits.values():
        say(summary(source))
    megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    say(f"written to {path} ({megabytes:,.1f} MB)")
    by_path = KINDS[arguments.format].is_path is not False
    where = path if by_path else f"{arguments.name} --data-dir {arguments.data_dir}"
    say(f"read it with --data {arguments.format}:{where}")
    return 0


def main(arguments: list[str]) -> int:
    """Runs `data show SPEC` or `data write SPEC NAME`; returns the exit status."""
    with wrapped_help():
        chosen = tyro.extras.subcommand_cli_from_dict(
            {"show": Show, "write": Write},
            args=arguments,
            prog="python -m resnet_flax data",
            description="Describes a data set (data show), or writes it in another form (data write).",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    check_ranges(chosen)
    return show(chosen) if isinstance(chosen, Show) else write(chosen)
