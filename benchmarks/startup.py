"""How long a person waits before anything is computed: imports, tracing, compiling, with their peers beside them.

usage: python benchmarks/startup.py [--rounds 5] [--parts train predict compile] [--json FILE]

Every figure is of a process of its own; medians over the rounds, in which they take turns. Beside the seconds on the
clock stand those of the processors (of all threads), which a busy machine changes less: ratios are of these.

train    the default job for one epoch with its programs in the compilation cache, that is the second run of
         `python train.py --epochs 1`, beside a process that imports JAX and Flax and does nothing
predict  ResNet-50 on one image, beside importing JAX and Flax and what JAX takes to trace and compile the network, with
         an empty compilation cache and with a warm one
compile  tracing, lowering and compiling a training step without a cache: the default job's, and that of a ResNet-50 on
         16 images of 224x224; beside the same with XLA's own convolutions and max-pool
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import jax, flax.nnx"
WEIGHTS = """
import sys
import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
import resnet_flax
from parity import to_torch
model = resnet_flax.create_model("resnet50", rngs=nnx.Rngs(0))
save_file({name: np.array(array, order="C") for name, array in to_torch(model).items()}, "weights.safetensors")
Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)).save("image.jpg")
"""
NETWORK = """
import time
import jax, numpy as np
from flax import nnx
import resnet_flax
from resnet_flax.cache import use_compilation_cache
from resnet_flax.weights.pretrained import compiled
pretrained = resnet_flax.load_pretrained("resnet50", "weights.safetensors")
use_compilation_cache()
began = time.perf_counter(), time.process_time()
program = compiled(pretrained.model, pretrained.preprocessing)
program.lower(nnx.state(pretrained.model), np.zeros((1, 224, 224, 3), np.uint8)).compile()
print(time.perf_counter() - began[0], time.process_time() - began[1])
"""
STEP = """
import sys, time
from dataclasses import replace
import jax, jax.numpy as jnp
from flax import nnx
from resnet_flax.layers import pooling
from resnet_flax.training import setup
from resnet_flax.training.devices import open_devices
from resnet_flax.training.recipes import RECIPES
which, name, size, channels, batch = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
build = setup.create_model
def plain(*arguments, **options):
    model = build(*arguments, **options)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = jax.lax.conv_general_dilated
    return model
if which == "the peer":
    setup.create_model, pooling._max_pool = plain, pooling._xla
config = RECIPES["digits"].config
model = replace(config.model, name=name, small_images=size < 64)
config = setup.resolve(replace(config, model=model, batch_size=batch))
parts = setup.Setup(config, open_devices(config.run), setup.DataFacts(1438, channels, 10))
jax.config.update("jax_enable_compilation_cache", False)
state = jax.eval_shape(lambda: parts.state(parts.network.arrays(parts.build_model())))
images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
marks = [(time.perf_counter(), time.process_time())]
def mark(result):
    marks.append((time.perf_counter(), time.process_time()))
    return result
mark(mark(mark(parts.train_step.trace(state, {"image": images, "label": labels})).lower()).compile())
for (wall, processor), (later, more) in zip(marks, marks[1:]):
    print(later - wall, more - processor)
"""
STEPS = {
    "the default job's step": ("resnet18", "16", "1", "64"),
    "ResNet-50's step, batch 16, 224": ("resnet50", "224", "3", "16"),
}

Time = tuple[float, float]
"""Seconds on the clock and of the processors."""
Figures = dict[str, list[Time]]


def timed(arguments: list[str], folder: Path, cache: Path) -> tuple[Time, float, str]:
    """The time of a process, the seconds to its first character on stdout, and all of that."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESNET_FLAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process would compile this package's modules
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=folder, stdout=pipe, stderr=pipe, bufsize=0
    ) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        seen = time.perf_counter() - began
        out, errors = child.communicate()
    if child.returncode:
        raise SystemExit(errors.decode())
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        (wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        seen,
        (first + out).decode(),
    )


def times_in(out: str) -> list[Time]:
    """One on each line."""
    return [(float(wall), float(processor)) for wall, processor in map(str.split, out.splitlines())]


def train(figures: Figures, folder: Path, cache: Path) -> None:
    whole, first, _ = timed([str(ROOT / "train.py"), "--epochs", "1"], folder, cache)
    figures["train.py --epochs 1, second run"].append(whole)
    figures["its first line"].append((first, float("nan")))
    figures["import jax, flax"].append(timed(["-c", IMPORTS], folder, cache)[0])


def predict(figures: Figures, folder: Path, cache: Path) -> None:
    command = ["-m", "resnet_flax", "predict", "image.jpg", "--weights", "weights.safetensors", "--model", "resnet50"]
    for state, place in (("empty", cache / "empty"), ("warm", cache)):
        shutil.rmtree(cache / "empty", ignore_errors=True)
        figures[f"predict, {state} cache: ours"].append(timed(command, folder, place)[0])
        shutil.rmtree(cache / "empty", ignore_errors=True)
        (program,) = times_in(timed(["-c", NETWORK], folder, place)[2])
        imports = timed(["-c", IMPORTS], folder, cache)[0]
        figures[f"predict, {state} cache: the peer"].append((imports[0] + program[0], imports[1] + program[1]))
        figures[f"predict, {state} cache: of it the program"].append(program)


def compile_steps(figures: Figures, folder: Path, cache: Path) -> None:
    for step, arguments in STEPS.items():
        for which in ("ours", "the peer"):
            *_, out = timed(["-c", STEP, which, *arguments], folder, cache)
            for what, took in zip(("tracing", "lowering", "compiling"), times_in(out), strict=True):
                figures[f"{what} {step}: {which}"].append(took)


PARTS = {"train": train, "predict": predict, "compile": compile_steps}


def middle(times: list[Time]) -> Time:
    wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
    return wall, processor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: Figures = defaultdict(list)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary), Path(temporary, "cache")
        cache.mkdir()
        if "predict" in options.parts:
            timed(["-c", WEIGHTS], folder, cache)
        for part in set(options.parts) - {"compile"}:
            PARTS[part](defaultdict(list), folder, cache)  # fills the cache
        for _ in range(options.rounds):
            for part in options.parts:
                PARTS[part](figures, folder, cache)
    print(f"seconds on the clock, and of the processors; medians of {options.rounds} rounds; load {load:.1f} before")
    for what, times in figures.items():
        wall, processor = middle(times)
        print(f"{what:<58} {wall:7.2f} {processor:7.2f}")
    rows = []
    for what in [name.removesuffix(": ours") for name in figures if name.endswith(": ours")]:
        ours, peer = figures[f"{what}: ours"], figures[f"{what}: the peer"]
        each = [mine[1] / theirs[1] for mine, theirs in zip(ours, peer, strict=True)]
        ratio = statistics.median(each)
        print(f"{what:<58} {ratio:7.2f} of the peer's ({' '.join(f'{one:.2f}' for one in each)})")
        rows.append({"what": what, "ours": middle(ours)[1], "peer": middle(peer)[1], "ratio": ratio, "load": load})
    if options.json:
        rows += [{"what": what, "ours": middle(times)[0], "load": load} for what, times in figures.items()]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
