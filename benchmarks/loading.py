"""Loading a ResNet-50 checkpoint into its model: ours against torchvision, from .pth and from .safetensors.

Both sides read the file and fill a model that exists; imports and building are apart. The runs are interleaved in one
process and the medians compared. Peak memory is that of a fresh process which loads once, above what it had before.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import torch
import torchvision
from flax import nnx
from safetensors.torch import load_file, save_file

import parity
from resnet_flax.models import build_model

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

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pth, safetensors = Path(folder) / "resnet50.pth", Path(folder) / "resnet50.safetensors"
        torch.save(original.state_dict(), pth)
        save_file(original.state_dict(), safetensors)
        for path, theirs in (
            (pth, lambda: original.load_state_dict(torch.load(pth, weights_only=True))),
            (safetensors, lambda: original.load_state_dict(load_file(safetensors))),
        ):
            sides = {"ours": lambda path=path: ours(parity.load_checkpoint, path), "peer": theirs}
            times = {side: [] for side in sides}
            for run in range(args.runs + 1):
                for side, load in sides.items():
                    start = time.perf_counter()
                    load()
                    if run:  # the first one fills the caches
                        times[side].append(time.perf_counter() - start)
            median = {side: statistics.median(seconds) * 1e3 for side, seconds in times.items()}
            peak = int(subprocess.check_output([sys.executable, "-c", PEAK, path]))
            rows.append(
                {
                    "what": f"load ResNet-50 from {path.suffix} (ms)",
                    "ours": round(median["ours"], 1),
                    "peer": round(median["peer"], 1),
                    "ratio": round(median["ours"] / median["peer"], 3),
                    "peak memory / file size": round(peak / path.stat().st_size, 2),
                    "settings": f"median of {args.runs}",
                    "versions": f"jax {jax.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
                }
            )
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
