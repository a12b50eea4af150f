"""`python -m resnet_flax push OWNER/NAME --weights W`."""

import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from parity.conversion.checkpoints import write_checkpoint
from parity.conversion.convert import to_torch
from parity.conversion.files import read_regular
from parity.errors import printable
from parity.options import option_group, parse
from resnet_flax.commands.common import ModelArguments
from resnet_flax.errors import UserError
from resnet_flax.weights.arithmetic import arithmetic_of
from resnet_flax.weights.hub import require_repository, require_token, upload
from resnet_flax.weights.load import Pretrained
from resnet_flax.weights.metadata import metadata_of
from resnet_flax.weights.model_card import Card
from resnet_flax.weights.timm_config import timm_config

LARGEST_REPORT = 2**26  # bytes
Types = dict[str, type | tuple[type, ...]]
NUMBER = (int, float)
EVALUATION: Types = {"data": str, "split": str, "count": int, "accuracy": NUMBER, "top5": NUMBER, "loss": NUMBER}
PARITY: Types = {"passed": bool, "settings": dict, "comparisons": list}


@option_group
@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Publish a model on the Hugging Face hub, or write the same folder with --to.

    The folder has model.safetensors under torchvision's and timm's names, timm's config.json and a model card. It is
    loaded by timm (timm.create_model("hf-hub:OWNER/NAME", pretrained=True), or "local-dir:DIR"), by transformers
    (AutoModelForImageClassification.from_pretrained) and by resnet_flax.
    """

    repository: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")]
    """The repository; it is made where there is none."""
    to: Path | None = None
    """Write the folder here, and upload nothing."""
    license: str = "unknown"
    """The licence of the weights, by the hub's identifier, such as apache-2.0."""
    evaluation: Path | None = None
    """An evaluation.json, as --evaluate writes it: its figures go into the card."""
    parity: Path | None = None
    """A report, as python -m parity check --json writes it: its verdict goes into the card."""
    private: bool = False
    """Make a new repository private."""


def main(arguments: list[str]) -> int:
    args = parse(Arguments, arguments, prog="python -m resnet_flax push")
    require_repository(args.repository)
    if args.to is None:
        require_token()
    else:
        _require_new(args.to)
    evaluation = _read(args.evaluation, EVALUATION, "train.py --evaluate")
    parity = _read(args.parity, PARITY, "python -m parity check --json")
    pretrained = args.load()
    if parity and (other := parity["settings"].get("architecture")) not in (None, pretrained.architecture):
        raise UserError(f"{args.parity} is about a {other}, and the weights are those of a {pretrained.architecture}")
    if args.license == "unknown":
        print("warning: no --license was given; the card has 'unknown'", file=sys.stderr)

    command = "python -m resnet_flax push " + shlex.join(arguments)
    parent = args.to.absolute().parent if args.to else None
    try:
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=parent) as temporary:
            folder = Path(temporary) / "repository"
            folder.mkdir()
            for note in _write(folder, args, pretrained, command, evaluation, parity):
                print(f"warning: {printable(note)}", file=sys.stderr)
            names = ", ".join(sorted(path.name for path in folder.iterdir()))
            if args.to is None:
                place: object = upload(folder, args.repository, private=args.private)
            else:
                place = folder.rename(args.to)
    except OSError as error:
        raise UserError(f"cannot write {args.to or 'the repository'}: {error.strerror or error}") from error
    print(printable(f"{place}: {names}"))
    return 0


def _require_new(path: Path) -> None:
    """Raises UserError unless nothing has this name and its folder is there."""
    try:
        path.lstat()
    except FileNotFoundError:
        if not path.absolute().parent.is_dir():
            raise UserError(f"cannot write {path}: {path.absolute().parent} is not a directory") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        raise UserError(f"{path} exists; remove it or choose another name")


def _write(
    folder: Path,
    args: Arguments,
    pretrained: Pretrained,
    command: str,
    evaluation: dict[str, Any] | None,
    parity: dict[str, Any] | None,
) -> tuple[str, ...]:
    """Writes every file of the repository, and returns what timm and transformers do otherwise."""
    model, architecture = pretrained.model, pretrained.architecture
    config = timm_config(model, architecture, pretrained.preprocessing, pretrained.class_names, args.license)
    text = json.dumps(config.content, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    options = arithmetic_of(model, architecture)
    metadata = metadata_of(architecture, pretrained.preprocessing, pretrained.class_names, options=options)
    write_checkpoint(folder / "model.safetensors", to_torch(model), metadata)
    for path, name in ((args.evaluation, "evaluation.json"), (args.parity, "parity.json")):
        if path is not None:
            shutil.copyfile(path, folder / name)
    card = Card(
        args.repository,
        pretrained,
        command,
        args.license,
        notes=[*pretrained.notes, *config.notes],
        evaluation=evaluation,
        parity=parity,
        in_timm=config.is_loaded_by_timm,
    )
    try:
        text = str(card)
    except (KeyError, TypeError, ValueError) as error:  # inside the report, whose layout its writer owns
        raise UserError(f"{args.parity} is not a report of `python -m parity check --json` ({error!r})") from error
    (folder / "README.md").write_text(text, encoding="utf-8")
    return config.notes


def _read(path: Path | None, needed: Types, writer: str) -> dict[str, Any] | None:
    """A JSON object with these fields, as another command writes it."""
    if path is None:
        return None
    try:
        content = json.loads(read_regular(path, LARGEST_REPORT))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no JSON object; expected a file that {writer} writes")
    if wrong := [name for name, kind in needed.items() if not isinstance(content.get(name), kind)]:
        raise UserError(f"{path} has no usable {', '.join(wrong)}; expected a file that {writer} writes")
    return content
