"""`python -m resnet_flax features IMAGE... --weights W --out F.npz`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.conversion.files import write_whole
from parity.errors import printable
from parity.options import option_group, parse
from resnet_flax.commands.common import ImageArguments, run_on_images
from resnet_flax.errors import UserError
from resnet_flax.inference import find_images, make_apply


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments(ImageArguments):
    """Write the activations of chosen layers to an .npz file.

    The file has a float32 array for each tap, (images, h, w, c) or for pool (images, c), and the images' paths under
    "paths". Images that cannot be read are reported on stderr and skipped, and the exit status is 1.
    """

    out: Path
    """The .npz file to write."""
    taps: str = "pool"
    """Which layers, separated by commas: stem, layer1, layer2, layer3, layer4, pool."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m resnet_flax features")
    if args.out.suffix != ".npz":
        raise UserError(f"{args.out}: the name must end in .npz")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"{args.out.absolute().parent} is not a directory")
    taps = tuple(tap.strip() for tap in args.taps.split(",") if tap.strip())
    if not taps:
        raise UserError("--taps is empty; give some of stem, layer1, layer2, layer3, layer4, pool")
    images = find_images(args.images)
    pretrained = args.load()
    apply = make_apply(pretrained, taps)
    print(printable(f"{pretrained.architecture}, {pretrained.source}: {pretrained.preprocessing}"), file=sys.stderr)

    all_paths, chunks, unreadable = [], {tap: [] for tap in taps}, 0
    for paths, outputs, failed in run_on_images(images, args.batch_size, pretrained, apply):
        unreadable += failed
        all_paths += map(str, paths)
        for tap, values in outputs.items():
            shape = values.shape[1:]
            if chunks[tap] and shape != (first := chunks[tap][0].shape[1:]):
                raise UserError(
                    f"{tap} is {shape} for {paths[0]} but {first} for {all_paths[0]}: the images differ in size, and "
                    "the weights' preprocessing does not crop; give images of one size, or --taps pool"
                )
            chunks[tap].append(values)
    if not all_paths:
        raise UserError("none of the images could be read")
    arrays = {tap: np.concatenate(values) for tap, values in chunks.items()}
    contents = {**arrays, "paths": np.array(all_paths)}
    write_whole(args.out, lambda temporary: np.savez(temporary, allow_pickle=False, **contents))
    shapes = ", ".join(f"{tap} {values.shape}" for tap, values in arrays.items())
    print(printable(f"{args.out}: {shapes}"))
    return 1 if unreadable else 0
