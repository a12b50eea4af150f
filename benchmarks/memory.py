"""Whether memory and open files stay flat: 400 training steps, and predict on 2,000 images, at step 50 and at the end.

usage: python benchmarks/memory.py [--steps 400] [--images 2000] [--json FILE]

Images are read from files of different sizes. Exit status 1 if, after step 50, the resident memory (RSS) grows by more
than 5% or a file stays open. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FIRST = 50  # the step with which the end is compared
BATCH = 8
CLASSES = 4
WINDOW = 25  # samples in which the least number of open files is found
ALLOWED = 0.05  # growth of the memory


@dataclass(frozen=True)
class Sample:
    """What a process uses after a step: megabytes of memory, open files, threads."""

    step: int
    rss: float
    files: int
    threads: int


def sample(process: subprocess.Popen, step: int) -> Sample | None:
    """None once the process has ended."""
    place = Path("/proc", str(process.pid))
    try:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return Sample(
            step, int(status["VmRSS"].split()[0]) / 1e3, len(list((place / "fd").iterdir())), int(status["Threads"])
        )
    except (OSError, KeyError):
        return None


def make_images(folder: Path, count: int) -> None:
    """Pictures of 20 to 60 pixels, in one folder for each class."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (*random.integers(20, 61, 2), 3), np.uint8)
        path = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def start(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "resnet_flax", *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)


def while_training(images: Path, workdir: Path, steps: int) -> Iterator[Sample]:
    # A fifth of the images is held out; an epoch ends with an evaluation and a checkpoint.
    per_epoch = len(list(images.glob("*/*"))) * 4 // 5 // BATCH
    process = start(
        *("train", "cifar10", "--data", f"folder:{images}", "--image-size", "16", "--batch-size", BATCH),
        *("--model", "cifar_resnet20", "--learning-rate", "0.01"),
        *("--epochs", -(-steps // per_epoch), "--log-every", "1", "--checkpoint-every", "20", "--workdir", workdir),
        stdout=subprocess.DEVNULL,
    )
    seen, path = 0, workdir / "metrics.jsonl"
    while process.poll() is None and seen < steps:
        rows = path.read_text().count('{"kind": "train"') if path.exists() else 0
        if rows > seen and (found := sample(process, rows)):
            seen = rows
            yield found
        time.sleep(0.02)
    if process.wait():
        raise SystemExit("training failed")


def while_predicting(images: Path, weights: Path) -> Iterator[Sample]:
    process = start(
        *("predict", images, "--weights", weights, "--json", "--batch-size", BATCH),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    for number, _ in enumerate(process.stdout, 1):
        if number % BATCH == 0 and (found := sample(process, number // BATCH)):
            yield found
    if process.wait():
        raise SystemExit("predict failed")


def row_of(what: str, samples: list[Sample]) -> dict:
    later = [x for x in samples if x.step >= FIRST]
    begin, end, largest = later[0], later[-1], max(x.rss for x in later)
    # At any moment some images and a checkpoint are open: a file that stays open raises the least number.
    files = [min(x.files for x in part) for part in (later[:WINDOW], later[-WINDOW:])]
    return {
        "what": what,
        "ours": round(end.rss, 1),
        "peer": round(begin.rss, 1),
        "ratio": round(end.rss / begin.rss, 4),
        "largest": round(largest, 1),
        "files": files[1],
        "files before": files[0],
        "threads": end.threads,
        "threads before": begin.threads,
        "settings": f"megabytes after step {end.step} (ours) and step {begin.step} (peer), batch {BATCH}, CPU",
        "versions": f"jax {version('jax')}, grain {version('grain')}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", options.images)
        rows = [
            row_of("training", list(while_training(folder / "images", folder / "run", options.steps))),
            row_of("predict", list(while_predicting(folder / "images", folder / "run" / "best.safetensors"))),
        ]
    for row in rows:
        print(
            f"{row['what']}: {row['peer']} MB, then {row['ours']} MB ({row['ratio'] - 1:+.1%}, largest "
            f"{row['largest']} MB), {row['files before']} open files, then {row['files']}, "
            f"{row['threads before']} threads, then {row['threads']}; {row['settings']}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["ratio"] > 1 + ALLOWED or row["files"] > row["files before"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
