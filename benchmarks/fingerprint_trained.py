"""Whether `parity.fingerprint` finds what small networks were trained with, from 32 held-out images.

    python benchmarks/fingerprint_trained.py --json fingerprints.json

Handwritten digits in front of photographs (both scikit-learn's; the absolute difference of the two, in the manner of
MNIST-M, arXiv:1505.07818, under a light of random colour) are written as PNG files, 32 pixels a side. Networks learn to
read them, each with another preprocessing or another option; the fingerprint is given their parameters and statistics,
nothing else, and 32 images of digits and places in the photographs that were not trained on. It exits with 1 if a right
candidate is told to be wrong, or a wrong one told to be right.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import parity
import resnet_flax
from parity.conversion.checkpoints import load_checkpoint
from parity.fingerprints.chain import Candidate
from parity.fingerprints.preprocessing import Preprocessing, preprocessings
from parity.fingerprints.report import Fingerprint
from resnet_flax.data import EvaluationTransform
from resnet_flax.training.metrics import read_metrics
from resnet_flax.training.workdir import Workdir
from resnet_flax.weights.arithmetic import model_options

SIZE = 32
HELD_OUT = 32
COLOUR = {(known.channels, known.name): known for known in preprocessings(3)}
IMAGENET, PIXELS, BGR = (
    COLOUR["RGB", "ImageNet's constants"],
    COLOUR["RGB", "[0, 255]"],
    COLOUR["BGR", "ImageNet's constants"],
)


@dataclass(frozen=True)
class Case:
    """A network and what it is trained with."""

    name: str
    model: str = "resnet18"
    preprocessing: Preprocessing = IMAGENET
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> Candidate:
        return Candidate(self.preprocessing, self.options)


CASES = (
    Case("plain"),
    Case("BGR", preprocessing=BGR),
    Case("stride in the first 1x1", "resnet14t", options={"stride_in_first_1x1": True}),
    Case("SiLU", options={"activation": "silu"}),
    Case("averaged strides", options={"aa_layer": "avg"}),
    Case("[0, 255]", preprocessing=PIXELS),
)


def pictures(digits: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """uint8 (SIZE, SIZE, 3) each, of digits (N, 8, 8) from 0 to 16."""
    photos, found = load_sample_images().images, []
    for number, digit in enumerate(digits):
        photo = photos[number % 2]
        side = int(rng.integers(SIZE, 3 * SIZE))
        left, top = (int(rng.integers(length - side)) for length in (photo.shape[1], photo.shape[0]))
        behind = Image.fromarray(photo).resize(
            (SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
        )
        stroke = Image.fromarray(np.uint8(digit * 15.9)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        blended = np.abs(np.asarray(behind, np.int16) - np.asarray(stroke, np.int16)[..., None])
        light = rng.uniform((0.7, 0.4, 0.1), (1, 0.8, 0.6))  # the same in all classes: of a lamp, or the evening
        found.append(np.uint8(blended * light))
    return found


def write_folders(root: Path) -> list[np.ndarray]:
    """Writes class folders to RGB and, with their channels exchanged, BGR; a fifth of the digits are for tests.

    Returns:
        the first `HELD_OUT` of these, in RGB.
    """
    digits = load_digits()
    images = pictures(digits.images, np.random.default_rng(0))
    for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        for channels, pixels in (("RGB", image), ("BGR", image[..., ::-1])):
            path = root / channels / ("test" if number % 5 == 0 else "train") / str(label) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return images[::5][:HELD_OUT]


def trained(case: Case, root: Path, epochs: int) -> tuple[dict[str, np.ndarray], float]:
    """The network's state_dict and its accuracy, of images from a folder of `write_folders`."""
    known, workdir = case.preprocessing, root / "runs" / re.sub(r"\W+", "-", case.name)
    if (workdir / "best.safetensors").exists():
        return load_checkpoint(workdir / "best.safetensors"), _accuracy(read_metrics(Workdir(workdir)))
    scale = known.range[1] - known.range[0]  # what pixels in [0, 1] are multiplied with
    model = resnet_flax.create_model(case.model, num_classes=10, rngs=nnx.Rngs(0), **model_options(case.options, {}))
    result = resnet_flax.fit(
        model,
        f"folder:{root / known.channels}",
        recipe="finetune",
        freeze=(),
        quiet=True,
        workdir=workdir,
        epochs=epochs,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        train_transform=EvaluationTransform(None, None),
        eval_transform=EvaluationTransform(None, None),
        mean=tuple(value / scale for value in known.mean),
        std=tuple(value / scale for value in known.std),
    )
    return load_checkpoint(result.weights), _accuracy(result.history)


def _accuracy(history: Sequence[Mapping[str, Any]]) -> float:
    return max(row["accuracy"] for row in history if row["kind"] == "evaluation")


def judged(report: Fingerprint, truth: Candidate) -> tuple[bool, str]:
    """Whether nothing wrong is told, and in words."""
    right = next(row for row in report.rows if row.candidate == truth)
    if right.is_told:
        return False, f"WRONG: told to be {report.best.candidate}"
    if right is report.best:
        others = len(report.undecided)
        return (
            True,
            f"right, in {report.confidence:.1%}; {others} of {len(report.rows) - 1} others cannot be told apart",
        )
    plain = all(report.best.candidate.options.get(option) is None for option in truth.options)
    return plain, "cannot be told" if plain else f"WRONG: told to be {report.best.candidate}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="some of the networks")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for images and weights; those in it are used again")
    args = parser.parse_args()

    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or Path(temporary)
        images = write_folders(root)
        cases = [case for case in CASES if not args.only or case.name in args.only]
        networks = [trained(case, root, args.epochs) for case in cases]
        for case, (state_dict, accuracy) in zip(cases, networks, strict=True):
            start = time.perf_counter()
            report = parity.fingerprint(state_dict, images)
            seconds = time.perf_counter() - start
            is_right, verdict = judged(report, case.truth)
            wrong += not is_right
            low, high = report.best.interval
            figures = f"{report.best.discrepancy:.3f} ({low:.3f} to {high:.3f})"
            print(
                f"| {case.name} ({case.model}, {accuracy:.0%}) | {report.best.candidate} | {figures} | {verdict} |",
                flush=True,
            )
            if args.keep:
                print(report, flush=True)
            rows.append(
                {
                    "what": f"discrepancy of the best candidate and of the right one, {case.name}",
                    "ours": report.best.discrepancy,
                    "peer": next(row.discrepancy for row in report.rows if row.candidate == case.truth),
                    "settings": f"{case.model}, {accuracy:.1%} of test digits, {HELD_OUT} images, {seconds:.0f} s",
                    "versions": f"jax {version('jax')}, flax {version('flax')}",
                    "verdict": verdict,
                }
            )
    for row in rows:
        row["ratio"] = round(row["ours"] / row["peer"], 3)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
