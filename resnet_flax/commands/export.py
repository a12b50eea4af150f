"""`python -m resnet_flax export --weights W --out F`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from parity.conversion.checkpoints import write_checkpoint
from parity.conversion.convert import to_torch
from parity.errors import printable
from parity.options import Pixels, option_group, parse
from resnet_flax.commands.common import ModelArguments
from resnet_flax.errors import UserError
from resnet_flax.export import export_stablehlo
from resnet_flax.weights.arithmetic import arithmetic_of
from resnet_flax.weights.metadata import metadata_of


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Write a model as .safetensors or .pth (torchvision's names), or as a .stablehlo artifact.

    The artifact is a serialised jax.export program for CPU and CUDA, weights included, from float32 images (N, H, W, C)
    for any N, normalised for the weights, to logits (N, classes). It runs with JAX alone:
    jax.export.deserialize(bytearray(open(FILE, "rb").read())).call(images).
    """

    out: Path
    """The file to write; its suffix sets the format."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the images that a .stablehlo artifact takes; by default the crop in the weights'
    preprocessing."""
    force: bool = False
    """Overwrite an existing file."""


def main(arguments: list[str]) -> int:
    config = (tyro.conf.FlagCreatePairsOff,)
    args = parse(Arguments, arguments, prog="python -m resnet_flax export", config=config)
    if args.out.suffix not in (".safetensors", ".pth", ".pt", ".stablehlo"):
        raise UserError(f"{args.out}: the name must end in .safetensors, .pth, .pt or .stablehlo")
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} exists; --force overwrites it")
    pretrained = args.load()
    if args.out.suffix == ".stablehlo":
        crop = pretrained.preprocessing.transform.crop_size
        size = args.size or ((crop, crop) if crop else None)
        if size is None:
            raise UserError("the weights' preprocessing has no crop, hence no size of images; give --size HEIGHT WIDTH")
        export_stablehlo(pretrained.model, args.out, size)
        shape = ", ".join(map(str, ("N", *size, pretrained.model.in_channels)))
        print(printable(f"{args.out}: float32 images ({shape}) -> logits, for cpu and cuda"))
    else:
        state_dict = to_torch(pretrained.model)
        options = arithmetic_of(pretrained.model, pretrained.architecture)
        metadata = metadata_of(
            pretrained.architecture, pretrained.preprocessing, pretrained.class_names, options=options
        )
        write_checkpoint(args.out, state_dict, metadata)
        print(printable(f"{args.out}: {len(state_dict)} entries"))
    return 0
