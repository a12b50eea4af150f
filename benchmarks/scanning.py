"""How long a folder of 100,000 images in 1,000 classes takes to list, beside torchvision's ImageFolder.

usage: python benchmarks/scanning.py [--classes 1000] [--images 100] [--rounds 5] [--json FILE]

The files are small and made in a temporary folder, with an index of their own (docs/data.md). Each line is a process
of its own, without its start; medians over the rounds, in which the lines alternate. "listed" opens both splits without
an index, as the first run does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OPENED = """
import sys, time
from resnet_flax.data import open_source
began = time.perf_counter(), time.process_time()
sizes = [len(open_source(f"folder:{sys.argv[1]}", split)) for split in ("train", "test")]
print(time.perf_counter() - began[0], time.process_time() - began[1], sum(sizes))
"""
THEIRS = """
import sys, time
from torchvision.datasets import ImageFolder
began = time.perf_counter(), time.process_time()
images = len(ImageFolder(sys.argv[1]))
print(time.perf_counter() - began[0], time.process_time() - began[1], images)
"""


def make_images(folder: Path, classes: int, images: int) -> None:
    """Files of one small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for number in range(classes):
        inner = folder / f"class{number:04d}"
        inner.mkdir(parents=True)
        for image in range(images):
            (inner / f"{image:05d}.png").write_bytes(buffer.getvalue())


def timed(arguments: list[str], environment: dict[str, str]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - began, result.stdout.split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100, help="in each class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wait", type=float, default=61, help="seconds until the folders count as settled")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        data, cache = Path(temporary, "data"), Path(temporary, "cache")
        make_images(data, options.classes, options.images)
        time.sleep(options.wait)
        environment = os.environ | {"RESNET_FLAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        for _ in range(options.rounds):
            shutil.rmtree(cache, ignore_errors=True)
            for name, code in (("listed", OPENED), ("from the index", OPENED), ("torchvision's ImageFolder", THEIRS)):
                _, (inside, processor, images) = timed(["-c", code, str(data)], environment)
                if int(images) != options.classes * options.images:
                    raise SystemExit(f"{name} found {images} images")
                seconds.setdefault(name, []).append(float(inside))
                seconds.setdefault(f"{name}, processor time", []).append(float(processor))
            show = ["-m", "resnet_flax", "data", "show", f"folder:{data}"]
            seconds.setdefault("data show, the whole command", []).append(timed(show, environment)[0])

    peer = statistics.median(seconds["torchvision's ImageFolder"])
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<42} {median:6.2f} s  ({min(values):.2f} to {max(values):.2f})")
        rows.append({"what": f"listing {options.classes * options.images} files, {name}", "ours": median, "peer": peer,
                     "ratio": median / peer, "settings": vars(options) | {"json": None}})  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
