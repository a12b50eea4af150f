"""Images/s of the input pipeline against torchvision's ImageFolder and DataLoader doing the same work.

The work: read 500x375 JPEGs (cut from scikit-image's and scikit-learn's photographs), RandomResizedCrop 224, horizontal
flip, batches of uint8; ours end as arrays on JAX's device. The two take turns in one run; each figure is the median of
its rounds, the ratio the median of the ratios within rounds. Needs the `test` extra.

With `--forms` the peer is the folder itself: the same images are written in each form by `data write` and read back, in
random order, with the same transform.

    python benchmarks/input_pipeline.py --json input_pipeline.json
    python benchmarks/input_pipeline.py --forms hf parquet wds tfds --workers 0 2
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
import warnings
from functools import partial
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
from resnet_flax.data.specs import WRITABLE, writer_of

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


def ours(spec: str, workers: int, options: argparse.Namespace, data_dir: Path | None = None) -> float:
    source = open_source(spec, data_dir=data_dir)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    host = training_batches(
        source, TrainingTransform(CROP, resize=options.resize), batch_size=options.batch_size, seed=0, workers=workers
    )
    try:
        return rate(prefetch_to_device(host, sharding), options.batch_size, options.warm_up, options.batches)
    finally:
        host.close()


def reading(spec: str, data_dir: Path | None = None) -> float:
    """Microseconds of processor time to read one encoded image, in random order: all in which the forms differ."""
    source = open_source(spec, data_dir=data_dir)
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    times = []
    for _ in range(4):  # the first one fills the caches
        start = time.process_time()
        for index in order:
            source.encoded(index)
        times.append((time.process_time() - start) / len(order) * 1e6)
    return min(times)


def torchvision_rate(root: Path, workers: int, options: argparse.Namespace) -> float:
    transform = transforms.Compose(
        [transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    source = datasets.ImageFolder(str(root / "train"), transform)
    count = options.batch_size * (options.warm_up + options.batches)
    sampler = RandomSampler(source, replacement=True, num_samples=count)
    loader = DataLoader(source, options.batch_size, sampler=sampler, num_workers=workers)
    return rate(iter(loader), options.batch_size, options.warm_up, options.batches)


def written(root: Path, form: str, out: Path) -> str:
    """The spec of the images of a folder written in that form."""
    sources = {split: open_source(f"folder:{root}", split) for split in ("train", "test")}
    name = "written" if form == "tfds" else str(out / form)
    writer_of(form)(name, out, sources)
    return f"{form}:{name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", choices=WRITABLE, default=[], help="compare these with the folder")
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
    packages = ("grain", "simplejpeg", "pillow", "torch", "torchvision")
    versions = ", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = make_folder(root / "folder", options.per_photograph)
        spec = f"folder:{root / 'folder'}"
        specs = {form: written(root / "folder", form, root) for form in options.forms}
        sides = {form: partial(ours, specs[form], data_dir=root) for form in specs}
        peer, name = partial(ours, spec), "folder"
        if not sides:
            sides, peer, name = {"ours": peer}, partial(torchvision_rate, root / "folder"), "torchvision"
        print(f"{images} JPEGs of {SIZE[0]}x{SIZE[1]}, batch {options.batch_size}, {options.rounds} rounds; images/s")
        if specs:
            costs = {name: reading(each, root) for name, each in (("folder", spec), *specs.items())}
            print("to read an image: " + ", ".join(f"{name} {cost:.0f} us" for name, cost in costs.items()))
        for side, workers in itertools.product(sides, options.workers):
            rounds = [(sides[side](workers, options), peer(workers, options)) for _ in range(options.rounds)]
            row = {
                "what": f"{'folder' if side == 'ours' else side} of JPEGs, RandomResizedCrop {CROP} + flip, {workers} "
                f"workers, images/s, against {name}",
                "ours": round(statistics.median(a for a, _ in rounds), 1),
                "peer": round(statistics.median(b for _, b in rounds), 1),
                "ratio": round(statistics.median(a / b for a, b in rounds), 2),
                "settings": f"batch {options.batch_size}, {options.batches} batches a round, {options.rounds} rounds, "
                f"{options.resize} resize",
                "versions": versions,
            }
            rows.append(row)
            ratios = " ".join(f"{a / b:.2f}" for a, b in rounds)
            print(f"{workers} workers: {side} {row['ours']}, {name} {row['peer']}, ratio {row['ratio']} ({ratios})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
