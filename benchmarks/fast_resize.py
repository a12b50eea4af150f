"""How far `--resize fast` is from Pillow's pixels, and what either takes.

usage: python benchmarks/fast_resize.py [--size 224] [--crops 40] [--json FILE]

Random resized crops of photographs that scikit-image and scikit-learn bring, as training draws them, resized by both.
Times are processor time of one thread, medians over the crops. Needs the extras `test` and `fast`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

from resnet_flax.data.fast_resize import FILTERS, fast_resize
from resnet_flax.data.transforms import RESAMPLING, TrainingTransform, random_resized_crop, window_to_pil

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "rocket.jpg", "ihc.png", "retina.jpg")


def photographs() -> list[np.ndarray]:
    bundled = Path(skimage.data.__file__).parent
    paths = [bundled / name for name in NAMES]
    paths += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    images = []
    for path in paths:
        with Image.open(path) as opened:
            images.append(np.asarray(opened.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)))
    return images


def timed(function: Callable[[], Image.Image]) -> tuple[float, np.ndarray]:
    began = time.thread_time()
    image = function()
    return time.thread_time() - began, np.asarray(image).astype(int)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crops", type=int, default=40, help="of each photograph")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows, size, transform = [], (options.size, options.size), TrainingTransform()
    for interpolation in FILTERS:
        rng, counts, times = np.random.default_rng(0), np.zeros(256, int), []
        for image in photographs():
            for _ in range(options.crops):
                crop = random_resized_crop(rng, image.shape[:2], transform.scale, transform.ratio)
                region = window_to_pil(image, crop)
                fast, ours = timed(partial(fast_resize, region, size, interpolation))
                exact, pillow = timed(partial(region.resize, size, RESAMPLING[interpolation]))
                counts += np.bincount(np.abs(ours - pillow).ravel(), minlength=256)
                times.append((fast, exact))
        fast, exact = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
        shares, largest = counts / counts.sum(), int(np.flatnonzero(counts)[-1])
        differing, more = 1 - shares[0], shares[2:].sum()
        print(
            f"{interpolation:<9} {differing:6.2%} of the values differ, {more:.4%} by more than 1, at most {largest}; "
            f"{fast:.2f} ms, Pillow {exact:.2f} ms, ratio {fast / exact:.2f}"
        )
        rows.append({
            "what": f"{interpolation} resize of a crop to {options.size}, ms of one thread",
            "ours": fast,
            "peer": exact,
            "ratio": fast / exact,
            "settings": {"differing": differing, "by more than 1": more, "largest": largest},
            "versions": {name: version(name) for name in ("cykooz-resizer", "pillow")},
        })  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
