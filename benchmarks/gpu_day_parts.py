"""The parts of `gpu_day.py`, each a process of its own: its rows are the last line that it prints, as JSON.

    python benchmarks/gpu_day_parts.py PART [options]

A row has `what`, `ours`, `peer` and, where it judges something, `holds`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, Any]]


def row(what: str, ours: Any, peer: Any = None, **more: Any) -> dict[str, Any]:
    return {"what": what, "ours": round(ours, 4) if isinstance(ours, float) else ours, "peer": peer, **more}


def versions(options: argparse.Namespace) -> Rows:
    """What is installed, and the device as JAX and the driver see it."""
    from importlib.metadata import PackageNotFoundError, version

    import jax

    rows = []
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "torch", "torchvision"):
        try:
            rows.append(row(name, version(name)))
        except PackageNotFoundError:
            rows.append(row(name, "not installed"))
    device = jax.devices()[0]
    rows += [row("device", device.device_kind), row("platform", device.client.platform_version.split("\n")[0])]
    rows.append(row("CPU cores", len(os.sched_getaffinity(0))))
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
        rows.append(row(f"nvidia-smi {query}", done.stdout.strip() or done.stderr.strip()))
    except (OSError, subprocess.TimeoutExpired) as error:
        rows.append(row("nvidia-smi", f"none: {type(error).__name__}"))
    return rows


def training(options: argparse.Namespace) -> Rows:
    """A run of 50 steps, the same again, and one that is stopped halfway and resumed: all must end in the same bits."""
    data = "digits" if importlib.util.find_spec("sklearn") else "synthetic:8x8x1:1438"
    settings = ["--data", data, "--batch-size", "57"]
    if options.tiny:
        settings = ["--data", "synthetic:8x8x1:64", "--batch-size", "32", "--image-size", "8"]
    command = [sys.executable, str(ROOT / "train.py")]
    start = [*command, "digits", "--deterministic", "--schedule", "constant", *settings]

    def run(arguments: list[str], workdir: Path, epochs: int) -> float:
        began = time.monotonic()
        arguments = [*arguments, "--epochs", str(epochs), "--workdir", str(workdir)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-1500:]}")
        return time.monotonic() - began

    with tempfile.TemporaryDirectory() as folder:
        first, second, resumed = (Path(folder) / name for name in ("first", "second", "resumed"))
        seconds = run(start, first, 2)
        run(start, second, 2)
        run(start, resumed, 1)
        run([*command, "--resume"], resumed, 2)
        expected = _final_state(first)
        losses = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
        rows = [row(f"{data}: seconds of the run, start to end", seconds), row("its last row", losses[-1])]
        for name, path in (("a second run", second), ("a run stopped and resumed", resumed)):
            found = _final_state(path)
            differing = [key for key in expected if found.get(key) != expected[key]]
            rows.append(row(f"arrays of {len(expected)} that differ in {name}", len(differing), 0, holds=not differing))
    return rows


def _final_state(workdir: Path) -> dict[str, bytes]:
    """The bytes of every array of the last checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    restored = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(max(steps)) / "state").absolute())
    return {jax.tree_util.keystr(key): np.asarray(leaf).tobytes() for key, leaf in jax.tree.leaves_with_path(restored)}


def parity(options: argparse.Namespace) -> Rows:
    """`parity check` in float32 with TF32 off, in both frameworks on the device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "parity", "check", options.model, "--precision", "float32"]
        command += ["--device", options.device, "--json", str(report)]
        if options.tiny:
            command += ["--size", "32", "--batch", "2", "--checks", "forward"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if not report.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1500:]}")
        found = json.loads(report.read_text())
    failed = [one for one in found["comparisons"] if not one["passed"] and one["decides"]]
    named = ", ".join(one["name"] for one in failed[:5])
    what = f"{options.model}, float32: comparisons of {len(found['comparisons'])} out of tolerance"
    return [row(f"{what}{f' ({named})' if named else ''}", len(failed), 0, holds=found["passed"])]


def precisions(options: argparse.Namespace) -> Rows:
    """What TF32 and bfloat16 cost: the relative distance of logits and gradients from float32 with TF32 off."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    import resnet_flax

    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(options.batch, options.size, options.size, 3)), "float32"
    )
    labels = jnp.arange(options.batch) % 1000

    def results(precision: str) -> list[np.ndarray]:
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        model = resnet_flax.create_model(options.model, weights=None, dtype=dtype, rngs=nnx.Rngs(0))
        model.train()
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            logits = nnx.merge(graph, params, rest, copy=True)(images).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
            (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
        return [np.asarray(logits, "float64"), np.asarray(flat, "float64")]

    exact = results("float32")
    rows = []
    for precision in ("tf32", "bfloat16"):
        for what, ours, theirs in zip(("logits", "gradients"), results(precision), exact, strict=True):
            distance = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
            rows.append(row(f"{options.model}, {precision}: {what}, relative distance from float32", distance))
    return rows


def throughput(options: argparse.Namespace) -> Rows:
    """Images/s of one of the two frameworks, with peak memory."""
    import gpu_throughput

    found = {"ours": gpu_throughput.measure_ours, "torch": gpu_throughput.measure_torch}[options.who](options)
    label = f"{options.model} {options.mode}, {options.precision}, batch {options.batch}, {options.label}"
    rows = [row(f"{label}: images/s", round(found["images/s"], 1))]
    if "predicted" in found:
        low, high = found["predicted"]
        rows[0] |= {"peer": f"predicted {low:.0f} to {high:.0f}", "holds": low <= found["images/s"] <= high}
    if "memory" in found:
        compiled = found.get("compiled memory")
        rows.append(row(f"{label}: peak memory, GB", found["memory"], compiled and f"compiled {compiled:.2f}"))
    if "share" in found:
        rows.append(row(f"{label}: share of the bandwidth bound", found["share"]))
    return rows


def profile(options: argparse.Namespace) -> Rows:
    """A trace of a few steps: time by kind of kernel beside the time model's, and the gaps between kernels."""
    import gpu_throughput

    from resnet_flax.compiled.cards import CARDS
    from resnet_flax.compiled.fold import known_card
    from resnet_flax.compiled.program import CompiledProgram

    ours = gpu_throughput.Ours(options)
    gpu_throughput.timed(ours.step, ours.wait, options)
    card = CARDS.get(known_card(ours.device.device_kind))
    program = CompiledProgram(ours.compiled.as_text())
    return summarise(trace(ours.step, ours.wait, options.steps), program, options.steps, card)


def trace(step: Callable[[], None], wait: Callable[[], None], steps: int) -> Any:
    """The profile of so many steps."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                step()
            wait()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(path))


def summarise(data: Any, program: Any, steps: int, card: Any) -> Rows:
    """Milliseconds a step by kind of kernel, from the events that name one of the program's instructions."""
    from resnet_flax.compiled.kernels import kind_of
    from resnet_flax.compiled.step_time import StepTime

    kinds = {kernel.instruction.name: kind_of(program, kernel) for kernel in program.kernels}
    predicted: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in StepTime(program, card).kernels if card else ():
        for end in (0, 1):
            predicted[one.kind][end] += one.seconds[end] * 1e3
    spent: dict[str, float] = defaultdict(float)
    unknown: dict[str, float] = defaultdict(float)
    spans: list[tuple[float, float]] = []
    planes = [plane for plane in data.planes if plane.name.startswith("/device:GPU")] or list(data.planes)
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        operation = next((str(value) for name, value in event.stats if name == "hlo_op"), "")
        if not operation and planes[0].name.startswith("/device"):
            unknown[event.name] += event.duration_ns / 1e6 / steps
        elif operation in kinds:
            spent[kinds[operation]] += event.duration_ns / 1e6 / steps
            spans.append((event.start_ns, event.start_ns + event.duration_ns))
    rows = []
    for kind, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        slow, fast = predicted[kind]
        peer = f"predicted {fast:.2f} to {slow:.2f}" if card else None
        rows.append(
            row(f"{kind}: ms a step", milliseconds, peer, **({"holds": fast <= milliseconds <= slow} if card else {}))
        )
    if spans:
        idle, reached = 0.0, min(spans)[0]
        for start, end in sorted(spans):
            idle += max(0.0, start - reached)
            reached = max(reached, end)
        whole = reached - min(spans)[0]
        rows.append(row("share of the time between the first and the last kernel in which none runs", idle / whole))
    for name, milliseconds in sorted(unknown.items(), key=lambda item: -item[1])[:10]:
        rows.append(row(f"without an instruction's name, {name[:80]}: ms a step", milliseconds))
    return rows or [row("events that name an instruction", 0, None, holds=False)]


def pipeline(options: argparse.Namespace) -> Rows:
    """Images/s of the input pipeline from JPEGs of 500 x 375, on threads and on one worker for each core."""
    import jax
    import numpy as np
    from PIL import Image

    from resnet_flax.data import TrainingTransform, open_source, prefetch_to_device, training_batches

    cores = len(os.sched_getaffinity(0))
    rng, rows = np.random.default_rng(0), []
    count, batches = (8, 2) if options.tiny else (256, 3 * cores + 8)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for number in range(count):  # shapes with edges and some noise, so that files are as large as photographs
            coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BILINEAR), np.int16)
            image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
            path = Path(folder) / "train" / str(number % 4) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=90)
            sizes.append(path.stat().st_size)
        source = open_source(f"folder:{folder}")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        for workers in dict.fromkeys((0, 0 if options.tiny else cores)):
            transform = TrainingTransform(options.size)
            host = training_batches(source, transform, batch_size=options.batch, seed=0, workers=workers)
            try:
                on_device = prefetch_to_device(host, sharding)
                for batch in islice(on_device, 2 + 2 * workers):
                    jax.block_until_ready(batch)
                began = time.perf_counter()
                for batch in islice(on_device, batches):
                    jax.block_until_ready(batch)
                speed = options.batch * batches / (time.perf_counter() - began)
            finally:
                host.close()
            size = f"{sum(sizes) / count / 1e3:.0f} KB each"
            rows.append(row(f"JPEGs of 500 x 375, {size}, {workers} workers, {cores} cores: images/s", round(speed, 1)))
    return rows


PARTS = {part.__name__: part for part in (versions, training, parity, precisions, throughput, profile, pipeline)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--who", default="ours", choices=("ours", "torch"))
    parser.add_argument("--mode", default="train", choices=("train", "inference"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "tf32", "float32"))
    parser.add_argument("--fold", default="always", choices=("auto", "always", "never"))
    parser.add_argument("--label", default="")
    options = parser.parse_args()
    options.compile = False
    print(json.dumps(PARTS[options.part](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
