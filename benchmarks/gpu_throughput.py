"""Images/s of training and inference on a GPU, beside torchvision with torch.compile, channels_last and AMP.

    python benchmarks/gpu_throughput.py --json gpu.json
    python benchmarks/gpu_throughput.py --batches 64 128 256 512 --precisions bfloat16 tf32 float32

Every measurement is a process of its own, so that neither framework holds the other's memory, and the two take turns;
figures are medians over the rounds, ratios medians of the rounds' ratios. Input lies on the device as uint8. A row of
the JSON file has `what`, `ours`, `peer`, `ratio`, `settings` and `versions`; `what` ends in its unit:

- `images/s`, `peak memory, GB`: ours and torch's;
- `share of the bandwidth bound`: ours against what the compiled program's HBM traffic would allow (peer: null), on the
  cards of `resnet_flax.compiled.cards`.

A measurement that fails, for lack of memory for example, is null, its reason goes to stderr, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PRECISIONS = ("bfloat16", "tf32", "float32")


def timed(step, wait, options: argparse.Namespace) -> float:
    """Seconds a call, after `warm_up` calls."""
    for _ in range(options.warm_up):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait()
    return (time.perf_counter() - start) / options.steps


class Ours:
    """Our step, compiled: `step()` dispatches one, `wait()` waits for the last."""

    def __init__(self, options: argparse.Namespace):
        import jax
        import numpy as np

        from resnet_flax.data.on_device import normalize
        from resnet_flax.training.config import ModelConfig, OptimizerConfig, TrainConfig
        from resnet_flax.training.setup import DataFacts, Setup
        from resnet_flax.training.sharding import data_mesh

        jax.config.update("jax_default_matmul_precision", "highest" if options.precision == "float32" else "default")
        self.device = jax.devices()[0]
        dtype = "bfloat16" if options.precision == "bfloat16" else "float32"
        config = TrainConfig(
            model=ModelConfig(name=options.model, dtype=dtype, fold=options.fold),
            optimizer=OptimizerConfig(weight_decay=1e-4),
            batch_size=options.batch,
        )
        setup = Setup(config, data_mesh([self.device]), DataFacts(images=1281167, channels=3, num_classes=1000))
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
        batch = {"image": images, "label": rng.integers(0, 1000, options.batch, np.int32)}
        self.batch = jax.device_put(batch, self.device)
        self.state = setup.state(setup.initial_arrays())
        self.result = None
        self.trains = options.mode == "train"
        if self.trains:
            self.compiled = setup.train_step.lower(self.state, self.batch).compile()
        else:

            def logits(arrays, images):
                return setup.network.model(arrays)(normalize(images, config.data.mean, config.data.std))

            self.arrays = {**self.state["params"], **self.state["statistics"]}
            self.compiled = jax.jit(logits).lower(self.arrays, self.batch["image"]).compile()

    def step(self) -> None:
        if self.trains:
            self.state, self.result = self.compiled(self.state, self.batch)
        else:
            self.result = self.compiled(self.arrays, self.batch["image"])

    def wait(self) -> None:
        import jax

        jax.block_until_ready(self.result)


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    from resnet_flax.compiled.cards import CARDS
    from resnet_flax.compiled.fold import known_card
    from resnet_flax.compiled.program import CompiledProgram
    from resnet_flax.compiled.step_time import StepTime

    ours = Ours(options)
    seconds = timed(ours.step, ours.wait, options)
    memory = ours.compiled.memory_analysis()
    found = {"device": ours.device.device_kind, "images/s": options.batch / seconds}
    if memory is not None:
        found["compiled memory"] = memory.peak_memory_in_bytes / 1e9
    stats = ours.device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["memory"] = stats["peak_bytes_in_use"] / 1e9
    if key := known_card(ours.device.device_kind):
        program = CompiledProgram(ours.compiled.as_text())
        found["share"] = program.traffic / CARDS[key].bandwidth / seconds
        found["predicted"] = StepTime(program, CARDS[key]).images_per_second(options.batch)
    return found


def measure_torch(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torchvision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "float32"
    torch.backends.cudnn.benchmark = True
    original = torchvision.models.get_model(options.model).to(device, memory_format=torch.channels_last)
    model = torch.compile(original) if options.compile else original
    optimizer = torch.optim.SGD(original.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    shape = (options.batch, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch,), device=device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    amp = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16")

    def forward():
        with amp:
            return model((images / 255 - mean) / std)

    def train():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(forward().float(), labels).backward()
        optimizer.step()

    def infer():
        with torch.inference_mode():
            forward()

    original.train(options.mode == "train")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = timed(train if options.mode == "train" else infer, wait, options)
    found: dict[str, Any] = {"images/s": options.batch / seconds}
    if device.type == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def run(who: str, mode: str, precision: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own; empty if it failed."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--measure", who, "--mode", mode]
    arguments += ["--precision", precision, "--batch", str(batch)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{who}, {mode}, {precision}, batch {batch} failed: {reason[:200]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def median(rounds: list[dict[str, Any]], name: str) -> float | None:
    values = [found[name] for found in rounds if name in found]
    return round(statistics.median(values), 3) if values else None


def main() -> int:
    from importlib.metadata import PackageNotFoundError, version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", choices=("train", "inference"), default=["train", "inference"])
    parser.add_argument("--fold", default="always", choices=("auto", "always", "never"))
    parser.add_argument("--steps", type=int, default=50, help="steps measured a round")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="torch without torch.compile")
    parser.add_argument("--json", type=Path, help="write the rows here")
    for name, kind in (("--measure", str), ("--mode", str), ("--precision", str), ("--batch", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps({"ours": measure_ours, "torch": measure_torch}[options.measure](options)))
        return 0

    def installed(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} not installed"

    versions = ", ".join(map(installed, ("jax", "flax", "torch", "torchvision")))
    rows, failed = [], False
    for mode in options.modes:
        for precision in options.precisions:
            for batch in options.batches:
                rounds = [
                    (run("ours", mode, precision, batch, options), run("torch", mode, precision, batch, options))
                    for _ in range(options.rounds)
                ]
                ours, peer = ([pair[i] for pair in rounds] for i in (0, 1))
                failed |= not all(map(all, rounds))
                ratios = [a["images/s"] / b["images/s"] for a, b in rounds if a and b]
                kind = next((found["device"] for found in ours if found), "unknown device")
                settings = (
                    f"{kind}, {options.size}x{options.size}, {options.steps} steps a round, {options.rounds} rounds"
                )
                for name, unit in (
                    ("images/s", "images/s"),
                    ("memory", "peak memory, GB"),
                    ("share", "share of the bandwidth bound"),
                ):
                    a, b = median(ours, name), median(peer, name)
                    ratio = statistics.median(ratios) if name == "images/s" and ratios else a / b if a and b else None
                    row = {"what": f"{options.model} {mode}, {precision}, batch {batch}: {unit}", "ours": a, "peer": b}
                    row["ratio"] = None if ratio is None else round(ratio, 3)
                    rows.append({**row, "settings": settings, "versions": versions})
                    if a is not None or name == "images/s":
                        print(f"{row['what']:<68} ours {a}  torch {b}  ratio {row['ratio']}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
