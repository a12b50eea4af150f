"""`python -m resnet_flax export --weights W --out F`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from parity.conversion.checkpoints import write_checkpoint
from parity.conversion.convert import to_torch
from parity.errors import printable
from parity.options import Pixels, PositiveInt, Range, option_group, parse
from resnet_flax.commands.common import ModelArguments
from resnet_flax.errors import UserError
from resnet_flax.export import export_stablehlo
from resnet_flax.weights.arithmetic import arithmetic_of
from resnet_flax.weights.load import Pretrained
from resnet_flax.weights.metadata import metadata_of

FORMATS = {"safetensors": ".safetensors", "pth": ".pth", "stablehlo": ".stablehlo", "onnx": ".onnx"}


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Write a model as .safetensors or .pth (torchvision's names), as .onnx, or as a .stablehlo artifact.

    An .onnx file takes float32 images (N, C, H, W) for any N, normalised for the weights, and gives logits
    (N, classes); the class names and the preprocessing are in its metadata.

    A .stablehlo artifact is a serialised jax.export program for CPU and CUDA, weights included, from float32 images
    (N, H, W, C) for any N, normalised for the weights, to logits (N, classes). It runs with JAX alone:
    jax.export.deserialize(bytearray(open(FILE, "rb").read())).call(images).
    """

    out: Path
    """The file to write; its suffix sets the format."""
    format: Literal["safetensors", "pth", "stablehlo", "onnx"] | None = None
    """As the suffix sets it; a name with another suffix is refused."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the images that an .onnx file or .stablehlo artifact takes; by default the crop in the
    weights' preprocessing."""
    opset: Annotated[int, Range(ge=13, le=20)] = 17
    """ONNX: version of its operators."""
    batch: PositiveInt | None = None
    """ONNX: fix the number of images; any by default."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """ONNX: of the images."""
    uint8: bool = False
    """ONNX: take uint8 images, which the file divides by 255 and normalises itself."""
    force: bool = False
    """Overwrite an existing file."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m resnet_flax export")
    of_suffixes = {suffix: name for name, suffix in FORMATS.items()} | {".pt": "pth"}
    kind = args.format or of_suffixes.get(args.out.suffix)
    if kind is None:
        raise UserError(
            f"{args.out}: the name must end in {', '.join(list(of_suffixes)[:-1])} or .pt; or give --format"
        )
    if args.format and of_suffixes.get(args.out.suffix) != kind:
        raise UserError(f"{args.out}: the name of a file of --format {kind} ends in {FORMATS[kind]}")
    for option, default in (("opset", 17), ("batch", None), ("layout", "NCHW"), ("uint8", False)):
        if kind != "onnx" and getattr(args, option) != default:
            raise UserError(f"--{option} is for .onnx files; {args.out} is {kind}")
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} exists; --force overwrites it")
    pretrained = args.load()
    options = arithmetic_of(pretrained.model, pretrained.architecture)
    metadata = metadata_of(pretrained.architecture, pretrained.preprocessing, pretrained.class_names, options=options)
    if kind == "onnx":
        _write_onnx(args, pretrained, metadata)
    elif kind == "stablehlo":
        size = _size(args, pretrained)
        export_stablehlo(pretrained.model, args.out, size)
        shape = ", ".join(map(str, ("N", *size, pretrained.model.in_channels)))
        print(printable(f"{args.out}: float32 images ({shape}) -> logits, for cpu and cuda"))
    else:
        state_dict = to_torch(pretrained.model)
        write_checkpoint(args.out, state_dict, metadata)
        print(printable(f"{args.out}: {len(state_dict)} entries"))
    return 0


def _write_onnx(args: Arguments, pretrained: Pretrained, metadata: dict[str, str]) -> None:
    from resnet_flax.onnx_export import export_onnx

    height, width = size = _size(args, pretrained)
    export_onnx(
        pretrained.model,
        pretrained.architecture,
        args.out,
        size,
        opset=args.opset,
        batch=args.batch,
        layout=args.layout,
        preprocessing=pretrained.preprocessing if args.uint8 else None,
        metadata=metadata,
    )
    channels = pretrained.model.in_channels
    shape = (channels, height, width) if args.layout == "NCHW" else (height, width, channels)
    shown = ", ".join(map(str, (args.batch or "N", *shape)))
    kind = "uint8" if args.uint8 else "float32"
    print(printable(f"{args.out}: {kind} images ({shown}) -> logits, ONNX opset {args.opset}"))


def _size(args: Arguments, pretrained: Pretrained) -> tuple[int, int]:
    """Height and width of the images.

    Raises:
        UserError: if nothing sets them.
    """
    crop = pretrained.preprocessing.transform.crop_size
    size = args.size or ((crop, crop) if crop else None)
    if size is None:
        raise UserError("the weights' preprocessing has no crop, hence no size of images; give --size HEIGHT WIDTH")
    return size
