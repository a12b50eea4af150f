"""A ResNet from scratch on a folder of few JPEGs: circles, squares and triangles of any size, turned and coloured.

    python benchmarks/small_folder.py

The settings are those that docs/training.md gives for some hundred images. It prints the test accuracy and the seconds
of the command, from start to exit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.workdir import Workdir

CORNERS = {"circles": 40, "squares": 4, "triangles": 3}
SETTINGS = "--image-size 32 --batch-size 16 --optimizer adam --learning-rate 1e-3 --epochs 20"


def draw(corners: int, rng: np.random.Generator) -> Image.Image:
    """A blurred RGB picture, 80 to 200 pixels on a side, with one regular polygon somewhere on a noisy ground."""
    width, height = (int(side) for side in rng.integers(80, 200, 2))
    ground = rng.integers(0, 90, (height, width, 3)) + rng.integers(0, 80, 3)
    image = Image.fromarray(ground.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    radius = min(width, height) * rng.uniform(0.25, 0.42)
    centre = rng.uniform(radius, np.array([width, height]) - radius)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    ImageDraw.Draw(image).polygon(
        [tuple(point) for point in points], fill=tuple(int(value) for value in rng.integers(130, 255, 3))
    )
    return image.filter(ImageFilter.GaussianBlur(0.7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of each class (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default 0)")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind, corners in CORNERS.items():
            folder = root / "shapes" / kind
            folder.mkdir(parents=True)
            for index in range(args.images):
                draw(corners, rng).save(folder / f"{index:03}.jpg")
        command = [sys.executable, "-m", "resnet_flax", "train", "cifar10", "--data", f"folder:{root / 'shapes'}"]
        start = time.perf_counter()
        subprocess.run([*command, *SETTINGS.split(), "--workdir", str(root / "run")], check=True)
        seconds = time.perf_counter() - start
        accuracies = [row["accuracy"] for row in read_metrics(Workdir(root / "run")) if row["kind"] == "evaluation"]
    print(f"{accuracies[-1]:.1%} of the held-back images after {len(accuracies)} epochs, {seconds:.0f} s")


if __name__ == "__main__":
    main()
