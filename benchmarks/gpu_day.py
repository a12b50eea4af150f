"""The first ten minutes of a GPU: does it work, is it exact, how fast is it, and was the time model right?

    python benchmarks/gpu_day.py --minutes 9 --json day.json --markdown day.md
    python benchmarks/gpu_day.py --dry                       prints the plan and the estimate of each part
    python benchmarks/gpu_day.py --device cpu --tiny         the same on a CPU, with tiny shapes: what the tests run

Each part is a process of its own on one GPU, and both files are written after each. A part whose estimate does not fit
into what is left of `--minutes` is skipped, with that as its reason; one that takes longer than everything left is
stopped. Rows of the JSON file have `what`, `ours`, `peer`, `ratio`, `settings` and `versions`, and `holds` where a row
judges something: equal bits, agreement, or a time within the prediction's range. Exit status 1 if a part failed or a
row of equality or agreement does not hold; a refuted prediction is a result, not a failure.

It needs jax, flax, optax, orbax-checkpoint, torch and torchvision; `gpu_wheels.sh` downloads the rest for a machine
without a network. Estimates are guesses until a card has run this: they were made from compile times on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("gpu_day_parts.py")
ROOT = WORKER.parent.parent
RESERVE = 5  # seconds kept for writing the last files

# Both flags are in jaxlib 0.10.2 and 0.12.0; XLA ends a process that is given an unknown one.
NO_AUTOTUNING = "--xla_gpu_autotune_level=0"
# Kernels inside a CUDA graph do not carry their instruction's name in a trace.
NO_GRAPHS = "--xla_gpu_enable_command_buffer="


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        seconds: the estimate, on one GPU of a data centre.
        arguments: of `gpu_day_parts.py`.
        xla_flags: added to XLA_FLAGS.
    """

    name: str
    seconds: int
    arguments: tuple[str, ...]
    xla_flags: str = ""


def _speed(label: str, *arguments: str, who: str = "ours", mode: str = "train") -> tuple[str, ...]:
    return ("throughput", "--who", who, "--mode", mode, "--label", label, *arguments)


PARTS = (
    Part("versions and device", 15, ("versions",)),
    Part("50 steps, twice and resumed, deterministic", 80, ("training",)),
    Part("parity resnet18", 40, ("parity", "--model", "resnet18")),
    Part("parity resnet50", 60, ("parity", "--model", "resnet50")),
    Part("what TF32 and bfloat16 cost", 50, ("precisions", "--batch", "32")),
    Part("train", 50, _speed("ours")),
    Part("train, torch", 25, _speed("torchvision, eager, channels_last, AMP", who="torch")),
    Part("train, nothing folded", 50, _speed("ours, nothing folded", "--fold", "never")),
    Part("train, no autotuning", 40, _speed("ours, no autotuning"), NO_AUTOTUNING),
    Part("inference", 30, _speed("ours", mode="inference")),
    Part(
        "inference, torch",
        15,
        _speed("torchvision, eager, channels_last, AMP", who="torch", mode="inference"),
    ),
    Part("profile", 50, ("profile", "--steps", "5"), NO_GRAPHS),
    Part("input pipeline", 30, ("pipeline",)),
)
TINY = ("--tiny", "--model", "resnet18", "--batch", "2", "--size", "32", "--steps", "2", "--warm-up", "1")
TINY += ("--precision", "float32")  # bfloat16 takes XLA longer to compile for a CPU


@dataclass
class Day:
    """What the parts gave, and the two files."""

    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)  # part, seconds or why there are none
    failed: list[str] = field(default_factory=list)

    def add(self, part: Part, found: list[dict[str, Any]], seconds: float) -> None:
        for row in found:
            row["ratio"] = None
            row["settings"] = part.name
            if row.get("holds") is False and not str(row["peer"]).startswith("predicted"):
                self.failed.append(row["what"])
            beside = "" if row["peer"] is None else f"  ({row['peer']})"
            print(f"    {row['what']}: {row['ours']}{beside}", flush=True)
        self.rows += found
        self.note(part, f"{seconds:.0f} s, estimated {part.seconds}")

    def note(self, part: Part, text: str) -> None:
        print(f"  {part.name}: {text}", flush=True)
        self.notes.append((part.name, text))

    def write(self) -> None:
        known = ("device", "jax", "flax", "torch")
        versions = ", ".join(f"{row['what']} {row['ours']}" for row in self.rows if row["what"] in known)
        if self.options.json:
            rows = [row | {"versions": versions} for row in self.rows]
            self.options.json.write_text(json.dumps(rows, indent=1) + "\n")
        if self.options.markdown:
            lines = [f"# One GPU: {versions}", "", "| | ours | beside it | holds |", "|---|---|---|---|"]
            for row in self.rows:
                cells = (row["what"], row["ours"], row["peer"], {True: "yes", False: "NO"}.get(row.get("holds")))
                lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
            lines += ["", "| part | |", "|---|---|", *(f"| {name} | {text} |" for name, text in self.notes)]
            self.options.markdown.write_text("\n".join(lines) + "\n")


def plan(minutes: float, parts: tuple[Part, ...]) -> list[tuple[Part, bool]]:
    """Every part, and whether it fits after those before it that do."""
    left, found = minutes * 60 - RESERVE, []
    for part in parts:
        fits = part.seconds <= left
        left -= part.seconds if fits else 0
        found.append((part, fits))
    return found


def run(part: Part, options: argparse.Namespace, limit: float) -> list[dict[str, Any]]:
    """The rows of a part.

    Raises:
        RuntimeError: if it fails or takes longer than `limit` seconds; the message has the end of what it printed.
    """
    command = [sys.executable, str(WORKER), *part.arguments, "--device", options.device]
    if options.tiny:
        command += TINY
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if options.device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    else:
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {part.xla_flags}".strip()
    # JAX would otherwise take three quarters of the memory, and the peak could not be told from it.
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"stopped after {limit:.0f} s, when the time was over") from error
    if done.returncode:
        end = " / ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise RuntimeError(f"failed with status {done.returncode}: {end[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="what all parts together may take")
    parser.add_argument("--dry", action="store_true", help="print the plan and the estimates, and run nothing")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these, as --dry names them")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="resnet18 on two images of 32 pixels: tests the script")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args()
    names = [part.name for part in PARTS]
    if unknown := [name for name in options.parts or () if name not in names]:
        parser.error(f"no part named {unknown[0]!r}; there are: {'; '.join(names)}")
    chosen = tuple(part for part in PARTS if options.parts is None or part.name in options.parts)

    planned = plan(options.minutes, chosen)
    total = sum(part.seconds for part, fits in planned if fits)
    print(f"{total} s of {options.minutes * 60:.0f} planned, for one {options.device}; estimates, not measurements")
    for part, fits in planned:
        print(f"  {part.seconds:>4} s  {part.name}{'' if fits else '  (does not fit)'}")
    if options.dry:
        return 0

    day, began = Day(options), time.monotonic()
    for part, _ in planned:
        left = options.minutes * 60 - RESERVE - (time.monotonic() - began)
        if part.seconds > left:
            day.note(part, f"skipped: {part.seconds} s estimated, {max(left, 0):.0f} s left")
        else:
            at = time.monotonic()
            try:
                day.add(part, run(part, options, left), time.monotonic() - at)
            except RuntimeError as error:
                day.failed.append(part.name)
                day.note(part, str(error))
        day.write()
    if day.failed:
        print(f"{len(day.failed)} failed or do not hold: {'; '.join(day.failed)}", file=sys.stderr)
    return 1 if day.failed else 0


if __name__ == "__main__":
    sys.exit(main())
