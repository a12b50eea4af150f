"""`python -m resnet_flax predict IMAGE... --weights W`."""

import sys
from dataclasses import dataclass

from rich.table import Table

from parity.errors import printable
from parity.options import PositiveInt, option_group, parse
from parity.trimmed import Trimmed
from resnet_flax.commands.common import ImageArguments, run_on_images
from resnet_flax.errors import UserError
from resnet_flax.inference import find_images, make_apply, top_classes
from resnet_flax.text import PlainConsole, to_json


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments(ImageArguments):
    """Classify images.

    Prints a table, or with --json a line of JSON for each image. Images that cannot be read are reported on stderr and
    skipped, and the exit status is 1.
    """

    top: PositiveInt = 5
    """How many classes to show."""
    json: bool = False
    """Print one line of JSON per image."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m resnet_flax predict")
    images = find_images(args.images)
    pretrained = args.load()
    if pretrained.model.fc is None:
        raise UserError(f"{args.weights} has no head, and so no classes; use `features` to write activations")
    names = pretrained.class_names or tuple(str(index) for index in range(pretrained.model.num_classes))
    print(printable(f"{pretrained.architecture}, {pretrained.source}: {pretrained.preprocessing}"), file=sys.stderr)

    unreadable = 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for paths, outputs, failed in run_on_images(images, args.batch_size, pretrained, make_apply(pretrained)):
        unreadable += failed
        for path, probabilities in zip(paths, outputs.get("probabilities", ()), strict=True):
            top = [(int(i), names[i], float(probabilities[i])) for i in top_classes(probabilities[None], args.top)[0]]
            if args.json:
                rows = [{"index": i, "class": name, "probability": round(p, 6)} for i, name, p in top]
                print(to_json({"image": str(path), "top": rows}), flush=True)
            for rank, (_, name, probability) in enumerate(top):
                table.add_row("" if rank else str(path), name, f"{probability:.4f}", end_section=rank == len(top) - 1)
    if table.rows and not args.json:
        width = None if sys.stdout.isatty() else 1000  # a pipe has no margin
        PlainConsole(width=width).print(Trimmed(table))
    return 1 if unreadable else 0
