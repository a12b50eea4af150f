"""`python -m parity check TARGET`."""

import math
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from parity.checks.memory import keep_little_freed_memory
from parity.commands.compiled import keep_compiled_programs
from parity.commands.targets import load_target
from parity.conversion.files import require_writable
from parity.conversion.matching import read_names
from parity.errors import ParityError, needs_extra, printable
from parity.networks import Family, NamedPair, family_of, named_pair
from parity.options import NonNegative, Pixels, PositiveInt, Seed, option_group, parse
from parity.progress import shown_by
from parity.registry import registered
from parity.trimmed import Trimmed

if TYPE_CHECKING:
    from parity.reports.results import Report
    from parity.sides.optimizers import Optimizer

USUAL_SIZE = 64


@option_group
@dataclass(frozen=True)
class Arguments:
    """Prove that a network agrees with its original, or with a recording of it.

    TARGET is a registered name, or package.module:function for a function of yours that returns (candidate, reference,
    inputs), or (candidate, inputs) or the candidate alone with --reference. Without --weights a registered network gets
    random weights and statistics, chosen so that every difference shows. Exit status 0 if everything agrees, 1 if
    not, 2 if the two cannot be compared.
    """

    network: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """A registered name: resnet18, resnet50, resnext50_32x4d, ... (python -m resnet_flax models lists ours), or
    package.module:function."""
    reference: Path | None = None
    """A recording (python -m parity record) to take as the reference."""
    names: Path | None = None
    """A JSON file {Flax path: PyTorch path}, as parity.match_names writes it. For package.module:function."""
    only: str | None = None
    """Judge only tensors whose names match this pattern, such as 'layer1.*'."""
    weights: Path | None = None
    """A checkpoint to check with: .pth, .safetensors or an Orbax directory."""
    checks: str | None = None
    """Which checks, separated by commas: by default forward, activations, gradients and batch_stats, and those of the
    recording with --reference."""
    modes: str | None = None
    """Which modes, eval or train or both, separated by commas; by default those that compute something of their own."""
    onnx: Path | None = None
    """An ONNX file of the network: it is compared, in float32, with the PyTorch network and then with the Flax one."""
    precision: Literal["float64", "float32", "bfloat16"] | None = None
    """float64 (the default) finds faults; the others show what a precision costs, next to what it costs PyTorch."""
    batch: PositiveInt = 4
    """Images in the batch."""
    size: Pixels | None = None
    """Height and width of the images; by default 64, or what the ONNX file takes."""
    image: Path | None = None
    """Real input: an image file, from which the batch is cut."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """For the checks optimizer and trajectory; sgd has momentum 0.9."""
    learning_rate: NonNegative = 0.05
    """Base learning rate: it rises over two steps, then follows a cosine (trajectory) or halves each step
    (optimizer)."""
    weight_decay: NonNegative = 1e-2
    """For the checks optimizer and trajectory."""
    steps: PositiveInt = 5
    """Steps of optimizer and trajectory. The trajectory trains on real images, scikit-learn's digits."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where both frameworks compute."""
    seed: Seed = 0
    """Seeds the random weights and inputs."""
    json: Path | None = None
    """Write everything measured to this file."""
    html: Path | None = None
    """Write a page with plots to this file."""


def main(arguments: list[str]) -> int:
    known = [name for family in registered().families.values() for name in family.names()]
    first = [argument for argument in arguments[:1] if not argument.startswith("-")]
    name = next((argument for argument in first or arguments if first or argument in known), "")
    family = family_of(name) if name and ":" not in name else None  # its options are the command's, too
    args = _parse(arguments, family)
    if (named := ":" not in args.network) and family is None:
        family = family_of(args.network)
    require_writable(args.json, args.html)
    if named or args.device == "gpu":
        with needs_extra("torch", "checking against PyTorch"):
            import torch
    _choose_device(args.device, torch if args.device == "gpu" else None)
    keep_compiled_programs()
    keep_little_freed_memory()

    from parity.reports.json import write_json
    from parity.reports.terminal import as_renderable

    with _shown_progress():
        report = _check_named(args, family) if family else _check_target(args)
    if args.only is not None:
        report.comparisons = [row for row in report.comparisons if fnmatchcase(row.name, args.only)]
        if not report.comparisons:
            raise ParityError(f"--only {args.only}: no tensor compared has such a name")
        report.findings = report.findings if not report.passed else []
    width = None if sys.stdout.isatty() else 100
    Console(width=width, highlight=False, markup=False, emoji=False).print(Trimmed(as_renderable(report)))
    if args.json:
        write_json(report, args.json)
    if args.html:
        from parity.reports.html import write_html

        write_html(report, args.html)
    return 0 if report.passed else 1


@contextmanager
def _shown_progress() -> Generator[None]:
    """On stderr: in a terminal one line that changes and then disappears, elsewhere a line for each check."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    one_line = Column(no_wrap=True, overflow="ellipsis")
    columns = TimeElapsedColumn(), TextColumn("{task.description}", markup=False, table_column=one_line)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task, began = shown.add_task("starting", total=None), time.monotonic()

        def show(check: str, step: str) -> None:
            shown.update(task, description=printable(f"{check}: {step}" if step else check))
            if not step and not console.is_terminal:
                print(f"{time.monotonic() - began:.0f} s  {check}", file=sys.stderr)

        with shown_by(show):
            yield


def _check_named(args: Any, family: Family) -> "Report":
    """A registered network against its original, or against a recording."""
    from parity.checks.check import DEFAULT, check

    checks = _split(args.checks) or ["forward", "activations", "gradients", "batch_stats"]
    options = {option.name: getattr(args, option.name) for option in _options(family)}
    pair = named_pair(args.network, weights=args.weights, seed=args.seed, **options)
    if args.onnx is not None:
        return _check_onnx(args, pair)
    if args.reference is not None:
        return check(
            pair.flax_model,
            args.reference,
            precision=args.precision or "float64",
            steps=args.steps,
            checks=_split(args.checks) or DEFAULT,
            modes=_split(args.modes) or None,
        )
    inputs = _inputs(args, pair)
    report = check(
        pair.flax_model,
        pair.torch_model,
        inputs,
        np.random.default_rng(args.seed).integers(0, pair.num_classes, len(inputs)),
        checks=checks,
        modes=_split(args.modes) or None,
        precision=args.precision or "float64",
        optimizer=_optimizer(args, checks),
        steps=args.steps,
        batches=pair.batches(args.steps, args.batch, args.size or USUAL_SIZE) if "trajectory" in checks else None,
        train=pair.train,
        device="cuda" if args.device == "gpu" else "cpu",
    )
    weights = str(args.weights or f"random, seed {args.seed}")
    network = f"{args.network} ({args.weights})" if args.weights else args.network
    report.settings |= {"architecture": args.network, "weights": weights}
    report.settings |= {"flax network": network, "torch network": args.network}
    return report


def _inputs(args: Any, pair: NamedPair, usual: tuple[int, int] = (USUAL_SIZE, USUAL_SIZE)) -> np.ndarray:
    """A batch of images (N, H, W, C), of the usual height and width unless --size gives another."""
    from parity.sides.random_weights import random_inputs

    height, width = (args.size, args.size) if args.size else usual
    if args.image is None:
        return random_inputs((args.batch, height, width, pair.channels), seed=args.seed)
    return pair.read_image(args.image, args.batch, height)


def _check_onnx(args: Any, pair: NamedPair) -> "Report":
    """An ONNX file against both networks, in one report."""
    from parity.checks.check import DEFAULT, check
    from parity.sides.onnx import OnnxSide

    if args.weights is None:
        raise ParityError("--onnx needs --weights: those that the file was exported from")
    if args.precision not in (None, "float32"):
        raise ParityError(f"--onnx compares in float32, in which onnxruntime computes: not in {args.precision}")
    if args.reference is not None:
        raise ParityError("--onnx and --reference exclude each other")
    side = OnnxSide(args.onnx, "float32")
    inputs = np.moveaxis(_inputs(args, pair, side.image_size or (USUAL_SIZE, USUAL_SIZE)), -1, side.channels)
    checks, modes = _split(args.checks) or DEFAULT, _split(args.modes) or None
    options: dict[str, Any] = {"checks": checks, "modes": modes, "precision": "float32"}
    report = check(args.onnx, pair.torch_model, inputs, **options)
    other = check(args.onnx, pair.flax_model, inputs, **options)
    ours = other.settings["frameworks"][1]
    report.comparisons += [replace(row, check=f"{row.check}, {ours}") for row in other.comparisons]
    report.seconds |= {f"{name}, {ours}": value for name, value in other.seconds.items()}
    report.findings += other.findings
    report.notes += [note for note in other.notes if note not in report.notes]
    report.warnings += [text for text in other.warnings if text not in report.warnings]
    report.settings |= {"architecture": args.network, "weights": str(args.weights)}
    report.settings |= {"flax network": str(args.onnx), "torch network": args.network}
    return report


def _check_target(args: Any) -> "Report":
    """What a function of the caller's returns."""
    from parity.checks.check import DEFAULT, check

    if args.onnx is not None:
        raise ParityError("--onnx is for registered networks; in Python: parity.check(file, network, inputs)")
    parts = load_target(args.network)
    if args.reference is not None:
        candidate, inputs = parts if len(parts) == 2 else (*parts, None)[:2] if len(parts) == 1 else (None, None)
        expected, reference = "the candidate, or (candidate, inputs)", args.reference
    else:
        candidate, reference, inputs = parts if len(parts) == 3 else (None, None, None)
        expected = "(candidate, reference, inputs)"
    if candidate is None:
        raise ParityError(f"{args.network} must return {expected}; it returned {len(parts)} values")
    checks = _split(args.checks) or DEFAULT
    return check(
        candidate,
        reference,
        inputs,
        precision=args.precision or "float64",
        names=read_names(args.names) if args.names else None,
        optimizer=_optimizer(args, checks),
        steps=args.steps,
        device="cuda" if args.device == "gpu" else "cpu",
        checks=checks,
        modes=_split(args.modes) or None,
    )


def _optimizer(args: Any, checks: Sequence[str]) -> "Optimizer | None":
    """The optimiser asked for, where any of the checks takes steps."""
    from parity.sides.optimizers import Optimizer

    if not {"optimizer", "trajectory"} & set(checks):
        return None
    return Optimizer(args.optimizer, rate(args, checks), weight_decay=args.weight_decay)


def _split(names: str | None) -> list[str]:
    return [part.strip() for part in (names or "").split(",") if part.strip()]


def _parse(arguments: list[str], family: Family | None) -> Any:
    """The command's own arguments and those of the network's family, in one flat set of options."""
    options = [(option.name, option.type, field(default=option.default)) for option in _options(family)]
    together = make_dataclass("Arguments", options, bases=(Arguments,), frozen=True)
    together.__doc__ = Arguments.__doc__
    return parse(together, arguments, prog="python -m parity check")


def _options(family: Family | None) -> tuple[Field, ...]:
    return fields(family.Options) if family else ()


def rate(args: Any, checks: Sequence[str]) -> Any:
    """The learning rate: a number, which each step halves, or for a trajectory a warm-up and a cosine."""
    if "trajectory" not in checks:
        return args.learning_rate

    def cosine(step: int) -> float:
        return args.learning_rate * min((step + 1) / 2, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))

    return cosine


def _choose_device(device: str, torch: Any) -> None:
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    # JAX would otherwise take three quarters of the memory at once and leave PyTorch too little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not torch.cuda.is_available():
        raise ParityError("--device gpu: PyTorch finds no GPU")
    if jax.default_backend() != "gpu":
        raise ParityError("--device gpu: JAX finds no GPU; install resnet-flax with the extra cuda13 or cuda12")
