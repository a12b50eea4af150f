"""Ours and PyTorch's own noise, side by side: the table in docs/parity-results.md.

Each architecture and size runs in a process of its own and is kept in the JSON file as soon as it is done; a second run
does only what is missing. The optimiser's steps hold some twenty copies of the parameters in float64: resnet50 needs
6 GB, wide_resnet101_2 22 GB.
"""

import gc
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
import torch
import tyro

from parity import Optimizer, check, random_inputs
from parity.networks import named_pair
from parity.reports.terminal import worst

# At 0.05, five steps of residual18_3x3 from random weights explode, and biases before a norm are all rounding.
SGD = Optimizer("sgd", 1e-2)
ADAMW = Optimizer("adamw", 1e-3)
STEPS = 5
NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"),
    *("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "residual18", "residual18_3x3", "residual18_xavier"),
)
"""torchvision's and the Residual ones; docs/timm-family.md has the others."""
SIZES = (64, 33)


@dataclass(frozen=True)
class Arguments:
    """Measure the agreement with PyTorch, in float64, on random weights that hide nothing."""

    json: Path
    """Where the rows go, and where those already measured are taken from."""
    markdown: Path | None = None
    """Where to write the table."""
    architectures: tuple[str, ...] = NETWORKS
    sizes: tuple[int, ...] = SIZES
    """Height and width of the images: one even, one odd."""
    batch: int = 4


def measure(name: str, size: int, batch: int) -> list[dict]:
    """One row for each check and mode: the worst tensor's error beside PyTorch's own, and what is allowed."""
    jax.config.update("jax_platforms", "cpu")
    started = time.perf_counter()
    pair = named_pair(name)
    inputs = random_inputs((batch, size, size, pair.channels))
    arguments = pair.flax_model, pair.torch_model, inputs, np.arange(batch)
    report = check(*arguments, optimizer=SGD, steps=STEPS)
    gc.collect()  # the compiled functions of that check hold on to its gigabytes
    adamw = check(*arguments, checks=("optimizer",), optimizer=ADAMW, steps=STEPS)
    comparisons = [
        *((row.check, row) for row in report.comparisons),
        *(("optimizer, AdamW", row) for row in adamw.comparisons),
    ]
    rows = []
    for (what, mode), group in groupby(comparisons, key=lambda item: (item[0], item[1].mode)):
        members = [row for _, row in group]
        top = worst(members)
        rows.append(
            {
                "what": f"{name} {size}px {what} {mode}",
                "architecture": name,
                "size": size,
                "check": what,
                "mode": mode,
                "tensors": len(members),
                "failed": sum(not row.passed for row in members),
                "ours": max(row.error.relative for row in members),
                "peer": max(row.floor for row in members),
                "ratio": top.excess,
                "settings": {"batch": batch, "precision": "float64", "seconds": time.perf_counter() - started},
                "versions": {"jax": jax.__version__, "torch": torch.__version__},
            }
        )
    return rows


def main() -> int:
    args = tyro.cli(Arguments)
    rows: list[dict] = json.loads(args.json.read_text()) if args.json.exists() else []
    context = multiprocessing.get_context("spawn")  # memory goes back after each network
    for name in args.architectures:
        for size in args.sizes:
            if any(row["architecture"] == name and row["size"] == size for row in rows):
                continue
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                measured = pool.submit(measure, name, size, args.batch).result()
            rows += measured
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
            failed = sum(row["failed"] for row in measured)
            print(f"{name} {size}px: {failed} failed, {measured[-1]['settings']['seconds']:.0f} s", flush=True)
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    return 1 if any(row["failed"] for row in rows) else 0


def markdown(rows: list[dict]) -> str:
    """The rows as a document, in the order of `NETWORKS`."""
    rows = sorted(rows, key=lambda row: (NETWORKS.index(row["architecture"]), -row["size"]))
    checks = list(dict.fromkeys((row["check"], row["mode"]) for row in rows))
    heading = ["network", "pixels", *(f"{check}, {mode}" if mode else check for check, mode in checks)]
    lines = [
        "# How closely the networks agree with PyTorch",
        "",
        "Made by `python benchmarks/parity_results.py --json FILE --markdown docs/parity-results.md` (float64, CPU, "
        f"batch {rows[0]['settings']['batch']}, random weights and statistics; "
        + ", ".join(f"{library} {version}" for library, version in rows[0]["versions"].items())
        + ").",
        "",
        "Each cell holds two relative errors against PyTorch in float64, each the largest over all tensors of the "
        "check: ours, and PyTorch's own when it computes the same in channels-last layout, with a permuted batch, with "
        "the input moved by one unit in the last place, and all three. Gradients and moments are measured against the "
        "size of the model's whole gradient. A tensor passes within 1e-10 or 8 times its own noise, if that is more.",
        "",
        "`batch_stats` is the running statistics after each of 3 batches. `optimizer` is SGD with momentum "
        f"{SGD.momentum}, weight decay {SGD.weight_decay} and a schedule from {SGD.learning_rate}, {STEPS} steps: "
        "parameters and moments after each. AdamW's "
        f"{STEPS} steps, from {ADAMW.learning_rate}, divide each gradient by its own size, so a gradient that is zero "
        "but for rounding becomes a full step, in PyTorch as in ours.",
        "",
        "| " + " | ".join(heading) + " |",
        "|---|" + "---:|" * (len(heading) - 1),
    ]
    for (name, size), group in groupby(rows, key=lambda row: (row["architecture"], row["size"])):
        cells = {(row["check"], row["mode"]): row for row in group}
        texts = []
        for key in checks:
            row = cells[key]
            texts.append(
                f"{row['ours']:.0e} / {row['peer']:.0e}" + (f" **{row['failed']} fail**" if row["failed"] else "")
            )
        lines.append(f"| {name} | {size} | " + " | ".join(texts) + " |")
    measured = {(row["architecture"], row["size"]) for row in rows}
    for size in SIZES:
        if missing := [name for name in NETWORKS if (name, size) not in measured]:
            lines += ["", f"Not measured yet at {size} pixels: {', '.join(missing)}. The same command adds them."]
    tensors = sum(row["tensors"] for row in rows)
    failed = sum(row["failed"] for row in rows)
    return "\n".join([*lines, "", f"{tensors:,} tensors compared, {failed} failed.", ""])


if __name__ == "__main__":
    sys.exit(main())
