"""Public ports of PyTorch networks to JAX against their originals: what is said of each, before and after mending.

    pip install --no-deps --target /some/folder jaxnn==0.2 jax-resnet==0.0.4 jax-models==0.0.5
    PYTHONPATH=/some/folder python benchmarks/ports_in_the_wild.py \\
        --json ports.json --markdown docs/ports-in-the-wild.md

One port at a time; rows are added to the JSON file as they are measured, and those that it has are not measured again.
A port whose package is not installed is skipped. Needs timm (the extra `torch`).
"""

import importlib.util
import json
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import torch
import tyro
from flax import linen, nnx

import parity
from parity.reports.results import Report

CHECKS = ("forward", "activations", "gradients", "batch_stats")
CLASSES = 5


@dataclass(frozen=True)
class Port:
    """A network of a public package and its original.

    Attributes:
        package: that has the port.
        name: of the network in timm.
        size: height and width of the images.
        build: makes the port, with the options: an NNX module, or a Linen module.
        options: of both constructors, to make the network small.
        mends: what is changed in the port where it differs, one after the other: as the page prints it, and as it is
            done to the network.
        left: what still differs then, in a finding.
    """

    package: str
    name: str
    size: int
    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    mends: tuple[tuple[str, Callable[[Any], None]], ...] = ()
    left: str = ""


def jaxnn(name: str) -> Callable[..., nnx.Module]:
    return lambda **options: importlib.import_module("jaxnn").create_model(name, **options)


def jax_resnet(name: str) -> Callable[..., linen.Module]:
    return lambda num_classes: getattr(importlib.import_module("jax_resnet"), name)(n_classes=num_classes)


def jax_models_convnext(**options: Any) -> linen.Module:
    return importlib.import_module("jax_models.models.convnext").ConvNeXt(**options)


def _modules(model: nnx.Module, kind: type) -> list[Any]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, kind)]


def mend_momentum(model: nnx.Module) -> None:
    for norm in _modules(model, nnx.BatchNorm):
        norm.momentum = 0.9


def mend_epsilon(model: nnx.Module) -> None:
    for norm in _modules(model, nnx.GroupNorm):
        norm.epsilon = 1e-5


def mend_gelu(model: nnx.Module) -> None:
    for _, module in nnx.iter_modules(model):
        if getattr(module, "act", None) is nnx.gelu:
            module.act = partial(nnx.gelu, approximate=False)


def mend_assertion(model: nnx.Module) -> None:
    module = importlib.import_module("jaxnn.layers.patch_embed")
    setattr(module, "_assert", lambda condition, message: None)  # noqa: B010


def mend_pool(model: nnx.Module) -> None:
    model.maxpool = model.maxpool.layers[-1]  # ty: ignore[unresolved-attribute]


def with_function(path: str, library: str, name: str, function: Callable) -> Callable[[Any], None]:
    """Puts another function in the place of `library.name` in the source file of a port."""

    def mend(model: Any) -> None:
        module = importlib.import_module(path)
        setattr(module, library, SimpleNamespace(**{**vars(getattr(module, library)), name: function}))

    return mend


BIASED = "running variance"
MOMENTUM = ("nnx.BatchNorm(..., momentum=0.9)", mend_momentum)
CONVNEXT = "jax_models.models.convnext"
PORTS = (
    Port(
        "jaxnn",
        "vit_tiny_patch16_224",
        32,
        jaxnn("vit_tiny_patch16_224"),
        {"img_size": 32, "depth": 2},
        (
            ("_assert of jaxnn/layers/trace_utils.py without checkify", mend_assertion),
            ("act_layer=partial(nnx.gelu, approximate=False)", mend_gelu),
        ),
        "converted to float32",  # the softmax of jax.nn.dot_product_attention
    ),
    Port("jaxnn", "resnet18", 33, jaxnn("resnet18"), mends=(MOMENTUM,), left=BIASED),
    Port("jaxnn", "resnet50_gn", 33, jaxnn("resnet50_gn"), mends=(("nnx.GroupNorm(..., epsilon=1e-5)", mend_epsilon),)),
    Port(
        "jaxnn",
        "resnetaa34d",
        64,
        jaxnn("resnetaa34d"),
        mends=(("no MaxPool2D before the average", mend_pool), MOMENTUM),
        left=BIASED,
    ),
    Port("jax_resnet", "resnet18", 33, jax_resnet("ResNet18"), left=BIASED),
    Port("jax_resnet", "resnet50", 33, jax_resnet("ResNet50"), left=BIASED),
    Port("jax_resnet", "resnet18d", 64, jax_resnet("ResNetD18"), left=BIASED),
    Port(
        "jax_models",
        "convnext_tiny",
        64,
        jax_models_convnext,
        {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
        (
            (
                "np.linspace(0, self.drop_path, sum(self.depths))",
                with_function(CONVNEXT, "jnp", "linspace", np.linspace),
            ),
            (
                "nn.gelu(x, approximate=False)",
                with_function(CONVNEXT, "nn", "gelu", partial(linen.gelu, approximate=False)),
            ),
        ),
    ),
)


@dataclass(frozen=True)
class Arguments:
    """Compare public ports with their originals."""

    json: Path
    """Flat rows, one for each port; read first, if it is there."""
    markdown: Path | None = None
    """Also write the page docs/ports-in-the-wild.md."""


def networks(port: Port, inputs: np.ndarray) -> tuple[Any, torch.nn.Module]:
    """The port, a Linen one with its variables, and its original."""
    import timm

    original = timm.create_model(port.name, num_classes=CLASSES, **port.options)
    model = port.build(num_classes=CLASSES, **port.options)
    if isinstance(model, linen.Module):
        named = {"deterministic": True} if "deterministic" in signature(type(model).__call__).parameters else {}
        return (model, jax.tree.map(np.asarray, model.init(jax.random.key(0), inputs, **named))), original
    return model, original


def measure(port: Port) -> dict[str, Any]:
    """One row: the verdict on the port as it is, and on the mended one."""
    began = time.monotonic()
    inputs = parity.random_inputs((2, port.size, port.size, 3))
    model, original = networks(port, inputs)
    parity.randomize(None, original)
    stages, names = [], None
    for line, mend in (("", lambda model: None), *port.mends):
        mend(model[0] if isinstance(model, tuple) else model)
        try:
            names = names or parity.match_names(model, original, inputs=inputs)
            filled = parity.to_flax(original.state_dict(), model[1] if isinstance(model, tuple) else model, names=names)
            model = (model[0], filled) if isinstance(model, tuple) else model
            report = parity.check(model, original, inputs, names=names, checks=CHECKS)
        except (parity.ParityError, TypeError, ValueError) as error:  # it cannot be compiled, say
            causes = [f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"]
            stages.append({"line": line, "agrees": False, "failed": [], "outputs": None, "causes": causes})
            continue
        stages.append({"line": line, **_outcome(report)})
    if not stages[-1]["agrees"] and not (port.left and port.left in str(stages[-1]["causes"])):
        print(f"{port.package} {port.name} differs in what no line here mends: {stages[-1]['causes']}")
    return {
        "what": f"{port.package} {port.name}",
        "renamed": len(names or {}),
        "stages": stages,
        "settings": {"size": port.size, "options": port.options, "checks": CHECKS, "precision": "float64"},
        "versions": {package: version(package) for package in (port.package, "timm", "jax", "flax")}
        | {"torch": torch.__version__},
        "seconds": round(time.monotonic() - began),
    }


def _outcome(report: Report) -> dict[str, Any]:
    raised = [row.note.split(". ")[0] for row in report.failures if "raises" in row.note]
    return {
        "agrees": report.passed,
        "failed": sorted({row.check for row in report.failures}),
        "outputs": max(row.error.relative for row in report.of("forward")),
        "causes": raised[:1] or list(dict.fromkeys(finding.cause for finding in report.findings)),
        "warnings": report.warnings,
    }


HEADER = """\
# Ports in the wild

Public ports of PyTorch networks to JAX, compared with their originals in float64, with random weights that hide nothing
and the checks {checks}. Made by `python benchmarks/ports_in_the_wild.py`, whose head has the whole command, with
{versions}. Names come from `parity.match_names`, so that none was written by hand. A line that mends a difference was
applied before the check that follows it; the first of several causes is printed, and how many more there are.

| port | images | mended by | outputs apart by | verdict | cause |
|---|---|---|---|---|---|
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    every = {package: number for row in rows for package, number in row["versions"].items()}
    versions = ", ".join(f"{package} {number}" for package, number in every.items())
    text = HEADER.format(checks=", ".join(rows[0]["settings"]["checks"]), versions=versions)
    paragraph, table = text.split("| port", 1)
    lines = ["\n\n".join(textwrap.fill(part, 120) for part in paragraph.strip().split("\n\n")) + f"\n\n| port{table}"]
    for row in rows:
        size = row["settings"]["size"]
        for number, stage in enumerate(row["stages"]):
            more = f" (and {len(stage['causes']) - 1} more)" if stage["causes"][1:] else ""
            cells = (
                row["what"] if not number else "",
                f"{size}x{size}" if not number else "",
                f"`{stage['line']}`" if stage["line"] else "",
                "" if stage["outputs"] is None else f"{stage['outputs']:.0e}",
                "agrees"
                if stage["agrees"]
                else f"differs in {', '.join(stage['failed'])}"
                if stage["failed"]
                else "raises",
                "".join(stage["causes"][:1]) + more,
            )
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def main() -> None:
    args = tyro.cli(Arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(args.json.read_text()) if args.json.exists() else []
    for port in PORTS:
        what = f"{port.package} {port.name}"
        if any(row["what"] == what for row in rows):
            continue
        if importlib.util.find_spec(port.package) is None:
            print(f"{what}: skipped, {port.package} is not installed")
            continue
        rows.append(measure(port))
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(what, *(stage["causes"] or "agrees" for stage in rows[-1]["stages"]), sep="\n  ", flush=True)
    if args.markdown and rows:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
