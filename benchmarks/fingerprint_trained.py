"""Networks trained here, each with another preprocessing or arithmetic: does `parity.fingerprint` find out which?

    python benchmarks/fingerprint_trained.py [--only SiLU BGR] [--steps 200] [--json FILE]

The task is to tell from a patch which photograph it was cut from, of the nine colour photographs that scikit-image and
scikit-learn contain. Every photograph is divided into bands; the patches shown to `parity.fingerprint` come from bands
that no network was trained on. Exit status 1 if something is named that is not so, with confidence.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

import parity
from parity.fingerprints.preprocessing import preprocessings
from resnet_flax import create_model
from resnet_flax.training.trajectory import train
from resnet_flax.weights.arithmetic import model_options

BANDS, HELD_OUT = 6, (1, 4)
SMALLEST = 32  # pixels of a patch before it is resized


class Trained(NamedTuple):
    """A network, and what it was trained with."""

    architecture: str = "resnet18"
    options: Mapping[str, Any] = MappingProxyType({})
    preprocessing: str = "RGB, ImageNet's constants"


NETWORKS = {
    "plain": Trained(),
    "SiLU": Trained(options={"activation": "silu"}),
    "averaged pooling": Trained(options={"aa_layer": "avg"}),
    "max-pool without padding": Trained(options={"max_pool_ceil": True}),
    "last stride 1": Trained(options={"last_stride": 1}),
    "BGR": Trained(preprocessing="BGR, ImageNet's constants"),
    "[0, 255]": Trained(preprocessing="RGB, [0, 255]"),
    "[-1, 1]": Trained(preprocessing="RGB, [-1, 1] (Inception's constants)"),
    "bottlenecks": Trained("resnet26"),
    "bottlenecks, stride in the first 1x1": Trained("resnet26", {"stride_in_first_1x1": True}),
}


def photographs() -> list[np.ndarray]:
    bundled = ("astronaut", "cat", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
    return [getattr(data, name)() for name in bundled] + list(load_sample_images().images)


def patches(count: int, size: int, held_out: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, size, size, 3) and which photographs they are of."""
    photos = photographs()
    bands = [band for band in range(BANDS) if (band in HELD_OUT) == held_out]
    labels = rng.permutation(np.arange(count) % len(photos))
    images = []
    for label in labels:
        height, width, _ = photos[label].shape
        side = int(rng.integers(SMALLEST, min(height, width // BANDS) + 1))
        left = int(rng.choice(bands)) * (width // BANDS) + int(rng.integers(width // BANDS - side + 1))
        top = int(rng.integers(height - side + 1))
        box = Image.fromarray(photos[label]).crop((left, top, left + side, top + side))
        images.append(np.asarray(box.resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(images), labels


def trained_network(row: Trained, steps: int, batch: int, size: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """The state_dict, and the loss before each step."""
    prepare = next(known for known in preprocessings(3) if str(known) == row.preprocessing)
    rng = np.random.default_rng(0)
    options = model_options(row.options, {})
    model = create_model(row.architecture, num_classes=len(photographs()), rngs=nnx.Rngs(0), **options)
    batches = []
    for _ in range(steps):
        images, labels = patches(batch, size, False, rng)
        batches.append((prepare(images), labels))

    def rate(step: int) -> float:
        return 0.05 * min((step + 1) / 10, 0.5 + 0.5 * np.cos(np.pi * step / steps))

    losses = train(model, batches, parity.Optimizer("sgd", rate, momentum=0.9, weight_decay=1e-4))
    return parity.to_torch(model), losses


def examined(name: str, row: Trained, args: argparse.Namespace) -> dict[str, Any]:
    start = time.process_time()
    state_dict, losses = trained_network(row, args.steps, args.batch, args.size)
    images, _ = patches(args.images, args.size, True, np.random.default_rng(1))
    between = time.process_time()
    report = parity.fingerprint(state_dict, images, size=args.size)
    print(f"\n{name}: loss {losses[0]:.2f} to {np.mean(losses[-10:]):.2f}\n{report}", flush=True)
    best = report.best.candidate
    named = [r for r in report.rows if (r.candidate.options, str(r.candidate.preprocessing)) == row[1:]]
    right = named[0] if named else None
    return {
        "what": name,
        "found": str(best),
        "discrepancy": report.best.discrepancy,
        "right": right is report.best,
        "wrong with confidence": right is None or (right is not report.best and right.is_told),
        "undecided": [str(r.candidate) for r in report.undecided],
        "nearest told apart": min((r.discrepancy for r in report.rows if r.is_told), default=None),
        "loss": float(np.mean(losses[-10:])),
        "processor seconds": [between - start, time.process_time() - between],
        "settings": f"{row.architecture}, {args.steps} steps of {args.batch}, {args.size} pixels, {args.images} images",
        "versions": f"jax {jax.__version__}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=48, help="pixels of a side")
    parser.add_argument("--images", type=int, default=32, help="held-out ones")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.only:
        rows.append(examined(name, NETWORKS[name], args))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    print("\n| trained with | found | discrepancy | nearest told apart | cannot be told apart |\n|---|---|---|---|---|")
    for row in rows:
        nearest = "none" if row["nearest told apart"] is None else f"{row['nearest told apart']:.3f}"
        found = row["found"] + ("" if row["right"] else " (WRONG)")
        print(f"| {row['what']} | {found} | {row['discrepancy']:.3f} | {nearest} | {'; '.join(row['undecided'])} |")
    return 1 if any(row["wrong with confidence"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
