"""Loading a ResNet-50 checkpoint into its model: ours against torchvision, from .pth and from .safetensors.

Both sides read the file and fill a model that exists; imports and building are apart. The runs are interleaved in one
process and the medians compared. Peak memory is that of a fresh process which loads once, above what it had before.

The rows for other namings recognise the network too (`read_weights`); their peer reads the same weights under
torchvision's own names, with the network known.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
import torchvision
from flax import nnx
from safetensors.torch import load_file, save_file

import parity
from resnet_flax.models import build_model
from resnet_flax.weights.files import read_weights

PEAK = """
import re, sys, jax, parity
from flax import nnx
from resnet_flax.models import build_model
if sys.argv[1].endswith(".pth"):
    import torch
model = nnx.eval_shape(lambda: build_model("resnet50", rngs=nnx.Rngs(0)))
jax.block_until_ready(jax.numpy.zeros(1))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
parity.to_flax(parity.load_checkpoint(sys.argv[1]), model)
jax.block_until_ready(nnx.state(model))
print(peak() - before)
"""


def substituted(*rules: tuple[str, str]) -> Callable[[str], str]:
    """A renaming by the first rule whose pattern is at the beginning of a name."""

    def renamed(name: str) -> str:
        found = (re.sub(pattern, theirs, name) for pattern, theirs in rules if re.match(pattern, name))
        return next(found, name)

    return renamed


NAMINGS: dict[str, Callable[[str], str]] = {
    "torchvision": lambda name: name,
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile of each block": substituted((r"(layer\d\.\d+)", r"\1._orig_mod")),
    "a Sequential of children": substituted(
        (r"conv1", "0"),
        (r"bn1", "1"),
        *((rf"layer{stage}", str(stage + 3)) for stage in range(1, 5)),
        (r"fc", "9"),
    ),
    "detectron2": substituted(
        (r"conv1", "stem.conv1"),
        (r"bn1", "stem.conv1.norm"),
        *(
            rule
            for stage in range(1, 5)
            for rule in (
                (rf"layer{stage}\.(\d+)\.bn(\d)", rf"res{stage + 1}.\1.conv\2.norm"),
                (rf"layer{stage}\.(\d+)\.downsample\.0", rf"res{stage + 1}.\1.shortcut"),
                (rf"layer{stage}\.(\d+)\.downsample\.1", rf"res{stage + 1}.\1.shortcut.norm"),
                (rf"layer{stage}", f"res{stage + 1}"),
            )
        ),
        (r"fc", "linear"),
    ),
    "Hugging Face": substituted(
        (r"conv1", "resnet.embedder.embedder.convolution"),
        (r"bn1", "resnet.embedder.embedder.normalization"),
        *(
            rule
            for stage in range(1, 5)
            for block in (rf"resnet.encoder.stages.{stage - 1}.layers.\1.",)
            for rule in (
                *(
                    (rf"layer{stage}\.(\d+)\.{ours}{part}", rf"{block}layer.{part - 1}.{theirs}")
                    for part in (1, 2, 3)
                    for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
                ),
                (rf"layer{stage}\.(\d+)\.downsample\.0", f"{block}shortcut.convolution"),
                (rf"layer{stage}\.(\d+)\.downsample\.1", f"{block}shortcut.normalization"),
            )
        ),
        (r"fc", "classifier.1"),
    ),
}


def others(state_dict: dict[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """Files of the same weights under other names, or beside other things: {what: path}."""
    contents: dict[str, Any] = {
        naming: {rename(name): tensor for name, tensor in state_dict.items()} for naming, rename in NAMINGS.items()
    }
    contents["among other entries"] = {
        "state_dict": {f"module.encoder_q.{name}": tensor for name, tensor in state_dict.items()}
        | {"module.queue": torch.zeros(128, 65536), "module.predictor.0.weight": torch.zeros(512, 256)},
        "optimizer": {"state": {}, "param_groups": []},
    }
    paths = {}
    for number, (what, content) in enumerate(contents.items()):
        paths[what] = folder / f"resnet50-{number}.pth"
        torch.save(content, paths[what])
    return paths


def medians(sides: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Milliseconds of each, the runs interleaved."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs + 1):
        for side, load in sides.items():
            start = time.perf_counter()
            load()
            if run:  # the first one fills the caches
                times[side].append(time.perf_counter() - start)
    return {side: statistics.median(seconds) * 1e3 for side, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each; the median counts")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()

    original = torchvision.models.resnet50()
    model = nnx.eval_shape(lambda: build_model("resnet50", rngs=nnx.Rngs(0)))

    def ours(load, path):
        parity.to_flax(load(path), model)
        jax.block_until_ready(nnx.state(model))

    about = {
        "settings": f"median of {args.runs}",
        "versions": f"jax {jax.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pth, safetensors = Path(folder) / "resnet50.pth", Path(folder) / "resnet50.safetensors"
        torch.save(original.state_dict(), pth)
        save_file(original.state_dict(), safetensors)
        for path, theirs in (
            (pth, lambda: original.load_state_dict(torch.load(pth, weights_only=True))),
            (safetensors, lambda: original.load_state_dict(load_file(safetensors))),
        ):
            median = medians({"ours": lambda path=path: ours(parity.load_checkpoint, path), "peer": theirs}, args.runs)
            peak = int(subprocess.check_output([sys.executable, "-c", PEAK, path]))
            rows.append(
                {
                    "what": f"load ResNet-50 from {path.suffix} (ms)",
                    "ours": round(median["ours"], 1),
                    "peer": round(median["peer"], 1),
                    "ratio": round(median["ours"] / median["peer"], 3),
                    "peak memory / file size": round(peak / path.stat().st_size, 2),
                    **about,
                }
            )
        state_dict = original.state_dict()
        sides = {"peer": lambda: original.load_state_dict(torch.load(pth, weights_only=True))} | {
            what: lambda path=path: ours(lambda file: read_weights(file).state_dict, path)
            for what, path in others(state_dict, Path(folder)).items()
        }
        median = medians(sides, args.runs)
        for what in list(sides)[1:]:
            rows.append(
                {
                    "what": f"recognise and load ResNet-50 from .pth, {what} (ms)",
                    "ours": round(median[what], 1),
                    "peer": round(median["peer"], 1),
                    "ratio": round(median[what] / median["peer"], 3),
                    **about,
                }
            )
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
