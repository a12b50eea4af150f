"""Fine-tuning end to end on real images: a ResNet-18 learns six of the digits, and a new head on it the other four.

    python benchmarks/finetune.py --json finetune.json

The digits (scikit-learn's) are written as PNG files in class folders. The backbone stays frozen; the same head is also
trained on a random backbone, and with cached features. Each run is a command of its own, timed from start to exit; the
backbone's parameters and statistics are compared bit for bit before and after.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

import parity
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax import create_model
from resnet_flax.data import open_source
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.workdir import Workdir

BASE, TARGET = "012345", "6789"
SIZE = 32
NORMALIZE = ["--mean", "0.5", "--std", "0.5"]
SIDES = [f"--{split}-transform.{side}-size" for split in ("train", "eval") for side in ("resize", "crop")]
FINETUNE = [*NORMALIZE, *(argument for side in SIDES for argument in (side, str(SIZE)))]


def write_folders(root: Path, classes: str) -> Path:
    for split in ("train", "test"):
        for index, sample in enumerate(open_source("digits", split)):
            name = str(sample["label"])
            if name in classes:
                path = root / split / name / f"{index:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample["image"][..., 0]).save(path)
    return root


def train(recipe: str, data: Path, workdir: Path, *options: str) -> tuple[float, float]:
    """(test accuracy after the last epoch, seconds)"""
    command = [sys.executable, "-m", "resnet_flax", "train", recipe, "--data", f"folder:{data}", "--workdir", workdir]
    command = [*map(str, command), *options]
    print("$", shlex.join(["python", *command[1:]]), flush=True)
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    return [row["accuracy"] for row in read_metrics(Workdir(workdir)) if row["kind"] == "evaluation"][-1], seconds


def backbone(path: Path) -> dict[str, np.ndarray]:
    return {name: array for name, array in parity.load_checkpoint(path).items() if not name.startswith("fc.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base, target = write_folders(root / "six", BASE), write_folders(root / "four", TARGET)
        accuracy, _ = train("digits", base, root / "base", "--image-size", str(SIZE), *NORMALIZE)
        print(f"six digits: {accuracy:.2%}\n")
        random = root / "random.safetensors"
        model = create_model("resnet18", num_classes=len(BASE), rngs=nnx.Rngs(0))
        write_checkpoint(random, parity.to_torch(model), {"architecture": "resnet18"})

        learnt = root / "base" / "best.safetensors"
        runs = {}
        for name, weights, options in [
            ("frozen backbone", learnt, []),
            ("frozen backbone, cached features", learnt, ["--cache-features"]),
            ("frozen random backbone, cached features", random, ["--cache-features"]),
        ]:
            workdir = root / name.replace(" ", "-")
            runs[name] = train("finetune", target, workdir, "--weights", str(weights), *FINETUNE, *options)
            before, after = backbone(weights), backbone(workdir / "best.safetensors")
            assert before.keys() == after.keys()
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)

    settings = f"ResNet-18, {SIZE} pixels, digits {TARGET} after {BASE}, 10 epochs"
    versions = f"jax {version('jax')}, flax {version('flax')}"
    (plain, slow), (cached, fast), (untrained, _) = runs.values()
    rows = [
        {"what": "test accuracy, learnt against random backbone", "ours": cached, "peer": untrained},
        {"what": "test accuracy, cached features against images", "ours": cached, "peer": plain},
        {"what": "seconds of the command, cached features against images", "ours": fast, "peer": slow},
    ]
    for row in rows:
        row |= {"ratio": round(row["ours"] / row["peer"], 3), "settings": settings, "versions": versions}
        print(f"{row['what']}: {row['ours']:.4g} / {row['peer']:.4g} = {row['ratio']}")
    print("the backbone's parameters and statistics are the same bits before and after each run")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    if cached <= untrained or min(plain, cached) < 0.9:
        sys.exit(1)


if __name__ == "__main__":
    main()
