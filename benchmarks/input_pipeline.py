"""Images/s of the input pipeline against torchvision's ImageFolder and DataLoader doing the same work.

The work: read 500x375 JPEGs (cut from scikit-image's and scikit-learn's photographs), RandomResizedCrop 224, horizontal
flip, batches of uint8; ours end as arrays on JAX's device. The two take turns in one run; each figure is the median of
its rounds, the ratio the median of the ratios within rounds. Needs the `test` extra.

    python benchmarks/input_pipeline.py --json input_pipeline.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from resnet_flax.data import TrainingTransform, open_source, prefetch_to_device, training_batches

SIZE = (500, 375)
CROP = 224


def make_folder(root: Path, per_photograph: int) -> int:
    """Writes `per_photograph` random windows of each bundled colour photograph as JPEGs of quality 90."""
    bundled = Path(skimage.data.__file__).parent
    names = (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "rocket.jpg",
        "ihc.png",
        "retina.jpg",
    )
    photographs = [bundled / name for name in names]
    photographs += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    rng = np.random.default_rng(0)
    for path in photographs:
        folder = root / "train" / path.stem
        folder.mkdir(parents=True)
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for number in range(per_photograph):
            width = int(min(image.width, image.height * 4 / 3) * rng.uniform(0.6, 1))
            height = width * 3 // 4
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            window = image.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BICUBIC)
            window.save(folder / f"{number:03d}.jpg", quality=90)
    return per_photograph * len(photographs)


def rate(batches, batch_size: int, warm_up: int, measured: int) -> float:
    """Images/s over `measured` batches after `warm_up` that fill the pipeline."""
    for _ in islice(batches, warm_up):
        pass
    start = time.perf_counter()
    for batch in islice(batches, measured):
        jax.block_until_ready(batch)
    return batch_size * measured / (time.perf_counter() - start)


def ours(root: Path, workers: int, options: argparse.Namespace) -> float:
    source = open_source(f"folder:{root}")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    host = training_batches(
        source, TrainingTransform(CROP, resize=options.resize), batch_size=options.batch_size, seed=0, workers=workers
    )
    try:
        return rate(prefetch_to_device(host, sharding), options.batch_size, options.warm_up, options.batches)
    finally:
        host.close()


def torchvision_rate(root: Path, workers: int, options: argparse.Namespace) -> float:
    transform = transforms.Compose(
        [transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    source = datasets.ImageFolder(str(root / "train"), transform)
    count = options.batch_size * (options.warm_up + options.batches)
    sampler = RandomSampler(source, replacement=True, num_samples=count)
    loader = DataLoader(source, options.batch_size, sampler=sampler, num_workers=workers)
    return rate(iter(loader), options.batch_size, options.warm_up, options.batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24, help="batches measured a round")
    parser.add_argument("--warm-up", type=int, default=12, help="batches before them")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--per-photograph", type=int, default=100)
    parser.add_argument(
        "--resize", choices=("exact", "fast"), default="exact", help="of ours; fast needs the extra fast"
    )
    options = parser.parse_args()
    # JAX warns that its threads and torch's fork may not mix; the forked workers never call JAX.
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = make_folder(root, options.per_photograph)
        print(f"{images} JPEGs of {SIZE[0]}x{SIZE[1]}, batch {options.batch_size}, {options.rounds} rounds; images/s")
        for workers in options.workers:
            rounds = [
                (ours(root, workers, options), torchvision_rate(root, workers, options)) for _ in range(options.rounds)
            ]
            row = {
                "what": f"folder of JPEGs, RandomResizedCrop {CROP} + flip, {workers} workers, images/s",
                "ours": round(statistics.median(a for a, _ in rounds), 1),
                "peer": round(statistics.median(b for _, b in rounds), 1),
                "ratio": round(statistics.median(a / b for a, b in rounds), 2),
                "settings": f"batch {options.batch_size}, {options.batches} batches a round, {options.rounds} rounds, "
                f"{options.resize} resize",
                "versions": ", ".join(
                    f"{name} {version(name)}" for name in ("grain", "simplejpeg", "pillow", "torch", "torchvision")
                )
                + f", Python {platform.python_version()}",
            }
            rows.append(row)
            ratios = " ".join(f"{a / b:.2f}" for a, b in rounds)
            print(f"{workers} workers: ours {row['ours']}, torchvision {row['peer']}, ratio {row['ratio']} ({ratios})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
