"""Every architecture of timm's `timm/models/resnet.py` in full, against timm: outputs, recognition, round trip.

    python benchmarks/timm_family.py --json family.json --markdown docs/timm-family.md

One architecture at a time, the smallest first. Rows are added to the JSON file as they are measured, and those that it
has are not measured again; the page is made of the file's rows alone. Needs timm (the extra `torch`).
"""

import gc
import json
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax import nnx

import parity
from parity import to_flax, to_torch
from parity.checks.tolerance import relative
from parity.conversion.convert import as_numpy
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.identify import identify

FLOAT64_LIMIT = 1e-10
FLOAT32_TIMES = 3


@dataclass(frozen=True)
class Arguments:
    """Compare every ResNet of timm with the architecture of the same name here."""

    json: Path
    """Flat rows, one for each architecture; read first, if it is there."""
    markdown: Path | None = None
    """Also write the page docs/timm-family.md."""
    size: int = 64
    """Height and width of the images, a multiple of 32."""
    batch: int = 2
    """Images."""
    minutes: float = 600.0
    """Start no architecture after so long."""


def outputs(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """The logits, operation by operation: compiling a network whole takes minutes, its operations repeat."""
    return np.asarray(model(jnp.asarray(images)))


def arrangements(original: torch.nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    """PyTorch's logits in float32: as it is, with the images in another order, and with channels last (it stays so)."""
    with torch.no_grad():
        plain = original(images).numpy()
        turned = original(images.flip(0)).flip(0).numpy()
        original.to(memory_format=torch.channels_last)
        return [plain, turned, original(images.to(memory_format=torch.channels_last)).numpy()]


def measure(name: str, size: int, batch: int) -> dict[str, Any]:
    """One row; an architecture that is refused has its sentence in `refused`."""
    import timm

    began = time.monotonic()
    original = timm.create_model(name).eval()
    parity.randomize(None, original)
    images = parity.random_inputs((batch, size, size, 3))
    channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    row: dict[str, Any] = {"what": name, "parameters": sum(p.numel() for p in original.parameters())}
    row["quietened"] = overflows(original, channels_first)
    if row["quietened"]:
        quieten(original)
    state_dict = original.state_dict()
    try:
        identity = identify({key: tuple(tensor.shape) for key, tensor in state_dict.items()})
        row["recognised"] = name in (identity.architecture, *identity.also)
        row["as"], row["also"] = identity.architecture, list(identity.also)
        model = to_flax(state_dict, replace(identity, architecture=name).build_abstract())
    except UserError as error:
        return row | {"refused": str(error), "seconds": round(time.monotonic() - began, 1)}
    back = to_torch(model)
    row["round trip"] = back.keys() == state_dict.keys()
    row["round trip"] &= all(back[key].tobytes() == as_numpy(tensor).tobytes() for key, tensor in state_dict.items())
    del back, state_dict
    model.eval()
    narrow = outputs(model, images)
    theirs = arrangements(original, channels_first)
    with torch.no_grad():
        oracle = original.double()(channels_first.double()).numpy()
    del original
    with jax.enable_x64(True):
        wide = outputs(widened(model), images.astype(np.float64))
    row["float64"] = relative(wide, oracle)
    row["float32"] = relative(narrow, oracle)
    row["torch float32"] = max(relative(array, oracle) for array in theirs)
    row["ours"], row["peer"], row["ratio"] = row["float32"], row["torch float32"], row["float32"] / row["torch float32"]
    row["passed"] = bool(
        row["recognised"] and row["round trip"] and row["float64"] <= FLOAT64_LIMIT and row["ratio"] <= FLOAT32_TIMES
    )
    row["settings"] = {"size": size, "batch": batch}
    row["versions"] = {package: version(package) for package in ("jax", "flax", "torch", "timm")}
    return row | {"seconds": round(time.monotonic() - began, 1)}


def overflows(original: torch.nn.Module, images: torch.Tensor) -> bool:
    """Whether its float32 does: some hundred sums of random blocks grow beyond 3e38."""
    with torch.no_grad():
        return not bool(torch.isfinite(original(images)).all())


def quieten(original: torch.nn.Module) -> None:
    """Divides the gammas of each block's last norm by 4."""
    for module in original.modules():
        if isinstance(last := getattr(module, "bn3", None), torch.nn.Module):  # only bottlenecks are that deep
            last.weight.data.div_(4)


def widened(model: nnx.Module) -> nnx.Module:
    """The network with its parameters and statistics in float64, which holds their float32 values exactly."""
    graph, state = nnx.split(model)
    return nnx.merge(
        graph, jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    )


def markdown(rows: list[dict[str, Any]], names: list[str]) -> str:
    """The page docs/timm-family.md, of the rows that were measured."""
    measured = [row for row in rows if "refused" not in row]
    refused = [row for row in rows if "refused" in row]
    absent = [name for name in names if name not in {row["what"] for row in rows}]
    lines = []
    for row in sorted(measured, key=lambda row: names.index(row["what"])):
        cells = [
            row["what"],
            f"{row['parameters']:,}",
            ", or ".join([row["as"], *row["also"]]),
            "same bytes" if row["round trip"] else "DIFFERS",
            *(f"{row[key]:.1e}" for key in ("float64", "float32", "torch float32")),
            f"{row['ratio']:.2f}",
            "yes" if row["passed"] else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sentences = [f"`{row['what']}` is refused: {row['refused']}." for row in refused]
    if quietened := [f"`{row['what']}`" for row in measured if row.get("quietened")]:
        sentences.append(
            f"With these weights PyTorch's own float32 overflows in {', '.join(quietened)}, so the gammas of each "
            "block's last norm were divided by 4 there."
        )
    if absent:
        sentences.append(f"Not measured yet: {', '.join(absent)}.")
    settings, versions = measured[0]["settings"], measured[0]["versions"]
    tools = ", ".join(f"{package} {number}" for package, number in versions.items())
    table, notes = "\n".join(lines), "\n\n".join(sentences)
    return f"""# Every ResNet of timm

Generated by `python benchmarks/timm_family.py --json family.json --markdown docs/timm-family.md`.

Architectures of timm's `timm/models/resnet.py`, which has {len(names)}, built in full by timm with random weights,
gammas and statistics (`parity.randomize`), against the architecture of the same name here; {len(measured)} were
measured, of which {sum(row["passed"] for row in measured)} pass. The images are {settings["batch"]} of
{settings["size"]}x{settings["size"]} pixels; {tools}, on a CPU, operation by operation.

- recognised as: what the names and shapes of its entries alone identify, and which other architectures have the same.
- round trip: PyTorch to Flax to PyTorch.
- float64, float32: the relative L2 difference of the logits from PyTorch's in float64; PyTorch's: of its own float32,
  the largest of three arrangements of the same computation (as it is, channels last, another order of the images).
- passes: float64 within {FLOAT64_LIMIT:g}, float32 within {FLOAT32_TIMES} times PyTorch's own error, recognised, same
  bytes.

| architecture | parameters | recognised as | round trip | float64 | float32 | PyTorch's | ratio | passes |
|---|---:|---|---|---:|---:|---:|---:|---|
{table}

{notes}
"""


def main(args: Arguments) -> int:
    import timm

    names = sorted(timm.list_models(module="resnet"), key=lambda name: (size_of(name), name))
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    began = time.monotonic()
    for name in names:
        if any(row["what"] == name for row in rows):
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        rows.append(measure(name, args.size, args.batch))
        print({key: value for key, value in rows[-1].items() if key not in ("settings", "versions")}, flush=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        gc.collect()
    if args.markdown is not None:
        args.markdown.write_text(markdown(rows, names))
    return 0 if all(row.get("passed", "refused" in row) for row in rows) else 1


def size_of(name: str) -> int:
    """How many parameters; the pruned networks, which have no row here, come first."""
    return ARCHITECTURES[name].parameters if name in ARCHITECTURES else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))))
