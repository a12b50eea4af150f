"""What ResNet-50 costs on GPUs, read from programs compiled for them, beside Flax's official example. Needs no GPU.

    python benchmarks/gpu_compile.py --environment .venv-cuda --json gpu_compile.json

makes that environment if it is missing (4.6 GB: JAX's CUDA libraries), compiles in it, and prints the table of
docs/performance.md. Every figure is a property of the compiled program, or a time model's prediction from it; none is a
measurement. Exit status 1 if one of the limits below, which are those of an H100, does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKER = "GPU_COMPILE_WORKER"

# Against the Flax example in the same run, and for eight GPUs.
LIMITS = {"traffic": 0.80, "memory": 0.65, "kernels": 960, "all_reduces": 4, "convolutions_to_come": 20, "sent": 1.05}
SCALES = (1, 8, 64)  # hosts of eight GPUs


@dataclass(frozen=True)
class Compiled:
    """A program and its compiler's report on it."""

    program: Any
    peak_memory: int
    batch_size: int  # of one device
    card: Any

    @property
    def megabytes_per_image(self) -> float:
        return self.program.traffic / self.batch_size / 1e6

    def predicted(self, gpus: int = 1, hosts: int = 1) -> Any:
        """The time of a step, over `hosts` with `gpus` each."""
        from resnet_flax.compiled.step_time import StepTime

        return StepTime(self.program, self.card, gpus, hosts)

    def images_per_second(self, gpus: int = 1, hosts: int = 1) -> tuple[int, int]:
        """Low and high, of all GPUs together."""
        low, high = self.predicted(gpus, hosts).images_per_second(self.batch_size * gpus * hosts)
        return int(low), int(high)


class Compiler:
    """Compiles ours and the peer's steps for one target; `batch_size` is always one device's."""

    def __init__(self, options: argparse.Namespace, layout: str = "1x1", *, sync_bn: bool = False):
        from resnet_flax.compiled.absent_gpu import absent_mesh, card_of
        from resnet_flax.training.config import ModelConfig, OptimizerConfig, TrainConfig
        from resnet_flax.training.setup import DataFacts, Setup

        self.options = options
        self.card = card_of(options.target)
        self.mesh = absent_mesh(f"{options.target}:{layout}")
        self.name = f"{layout}{'-sync-bn' if sync_bn else ''}"
        self.config = TrainConfig(
            model=ModelConfig(name=options.model, dtype=options.dtype, sync_bn=sync_bn, fold=options.fold),
            optimizer=OptimizerConfig(weight_decay=1e-4),
            batch_size=options.batch_size * self.mesh.size,
        )
        self.setup = partial(Setup, mesh=self.mesh, facts=DataFacts(images=1281167, channels=3, num_classes=1000))

    def compile(self, what: str, function: Any, state: Any, batch: Any, *, donate: bool) -> Compiled:
        import jax

        from resnet_flax.compiled.program import CompiledProgram
        from resnet_flax.training.sharding import abstract, replicated, sharded

        jitted = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=(0,) if donate else ())
        batch = abstract(batch, sharded(self.mesh))
        compiled = jitted.lower(abstract(state, replicated(self.mesh)), batch).compile()
        text = compiled.as_text()
        if self.options.hlo:
            (self.options.hlo / f"{what}-{self.name}.hlo").write_text(text)
        images = jax.tree.leaves(batch)[0].shape[0] // self.mesh.size
        return Compiled(CompiledProgram(text), compiled.memory_analysis().peak_memory_in_bytes, images, self.card)

    def images(self, dtype: str, batch_size: int | None = None) -> Any:
        import jax

        size = self.options.size
        count = (batch_size or self.options.batch_size) * self.mesh.size
        return jax.ShapeDtypeStruct((count, size, size, 3), dtype)

    def batch(self, dtype: str, batch_size: int | None = None) -> dict[str, Any]:
        import jax

        images = self.images(dtype, batch_size)
        return {"image": images, "label": jax.ShapeDtypeStruct(images.shape[:1], "int32")}

    def arrays(self, setup: Any) -> dict[str, Any]:
        """Shapes of the model's parameters and statistics."""
        import jax

        return jax.eval_shape(lambda: setup.network.arrays(setup.build_model()))

    def train(self, batch_size: int | None = None) -> Compiled:
        """The project's own step, from uint8 images on."""
        import jax

        from resnet_flax.training.state import create_state

        batch = self.batch("uint8", batch_size)
        setup = self.setup(replace(self.config, batch_size=batch["image"].shape[0]))
        create = partial(create_state, setup.network, optimizer=setup.optimizer, seed=0)
        return self.compile("train", setup.train_step, jax.eval_shape(create, self.arrays(setup)), batch, donate=True)

    def infer(self) -> Compiled:
        """Logits of uint8 images."""
        from resnet_flax.data.on_device import normalize

        setup, data = self.setup(self.config), self.config.data

        def logits(arrays, images):
            return setup.network.model(arrays)(normalize(images, data.mean, data.std))

        return self.compile("infer", logits, self.arrays(setup), self.images("uint8"), donate=False)

    def flax_train(self) -> Compiled:
        """The peer's step, from images on that the host has normalised."""
        import flax_baseline
        import jax

        dtype = self.options.dtype
        init, step = flax_baseline.training(jax.numpy.dtype(dtype))
        state = jax.eval_shape(init, jax.random.key(0), self.images(dtype))
        return self.compile("flax-train", step, state, self.batch(dtype), donate=True)

    def flax_infer(self) -> Compiled:
        import flax_baseline
        import jax

        dtype = self.options.dtype
        init, _ = flax_baseline.training(jax.numpy.dtype(dtype))
        state = jax.eval_shape(init, jax.random.key(0), self.images(dtype))
        variables = {name: state[name] for name in ("params", "batch_stats")}
        apply = flax_baseline.inference(jax.numpy.dtype(dtype))
        return self.compile("flax-infer", apply, variables, self.images(dtype), donate=False)


class Report:
    """Rows for the table and the JSON file, and which limits did not hold."""

    def __init__(self, settings: str, versions: str):
        self.settings, self.versions = settings, versions
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def add(self, what: str, ours: float, peer: float | None = None, *, limit: bool = True) -> None:
        ratio = round(ours / peer, 3) if peer else None
        row = {"what": what, "ours": ours, "peer": peer, "ratio": ratio}
        self.rows.append({**row, "settings": self.settings, "versions": self.versions})
        shown = f"{ours:>10}" + ("" if peer is None else f"{peer:>12}") + ("" if ratio is None else f"{ratio:8.3f}")
        print(f"{what:<68}{shown}{'' if limit else '   LIMIT MISSED'}", flush=True)
        if not limit:
            self.failed.append(what)

    def compare(self, what: str, ours: Compiled, peer: Compiled, *, limits: bool) -> None:
        """The figures that both have."""
        bandwidth = ours.card.bandwidth / 1e6
        traffic, peer_traffic = ours.megabytes_per_image, peer.megabytes_per_image
        self.add(
            f"{what}: HBM traffic, MB an image",
            round(traffic, 1),
            round(peer_traffic, 1),
            limit=not limits or traffic <= LIMITS["traffic"] * peer_traffic,
        )
        self.add(
            f"{what}: images/s if nothing but HBM bounds it", int(bandwidth / traffic), int(bandwidth / peer_traffic)
        )
        for end, own, theirs in zip(("low", "high"), ours.images_per_second(), peer.images_per_second(), strict=True):
            self.add(f"{what}: images/s predicted, {end}", own, theirs)
        self.add(
            f"{what}: peak memory, GB",
            round(ours.peak_memory / 1e9, 2),
            round(peer.peak_memory / 1e9, 2),
            limit=not limits or ours.peak_memory <= LIMITS["memory"] * peer.peak_memory,
        )
        self.add(
            f"{what}: kernels",
            ours.program.launches,
            peer.program.launches,
            limit=not limits or ours.program.launches < LIMITS["kernels"],
        )
        self.add(f"{what}: cuDNN convolutions", len(ours.program.convolutions), len(peer.program.convolutions))
        moved, peer_moved = (len(one.program.relayouts(largest_weight(one))) for one in (ours, peer))
        self.add(f"{what}: copies and transposes of activations", moved, peer_moved, limit=not limits or moved == 0)

    def collectives(self, what: str, ours: Compiled, needed: int) -> None:
        program = ours.program
        sent = sum(kernel.read for kernel in program.collectives)
        reduces = [kernel for kernel in program.collectives if kernel.instruction.collective == "all-reduce"]
        synchronous = sum(not program.is_asynchronous(kernel) for kernel in program.collectives)
        to_come = program.convolutions_after(program.collectives[0])
        self.add(f"{what}: HBM traffic, MB an image", round(ours.megabytes_per_image, 1))
        self.add(f"{what}: kernels", program.launches)
        self.add(f"{what}: all-reduces", len(reduces), limit=len(reduces) <= LIMITS["all_reduces"])
        self.add(f"{what}: collectives that are not asynchronous", synchronous, limit=synchronous == 0)
        self.add(
            f"{what}: convolutions still to come at the first",
            to_come,
            limit=to_come >= LIMITS["convolutions_to_come"],
        )
        self.add(
            f"{what}: MB sent a step, against gradients and statistics",
            round(sent / 1e6, 2),
            round(needed / 1e6, 2),
            limit=1 / LIMITS["sent"] <= sent / needed <= LIMITS["sent"],
        )


def largest_weight(compiled: Compiled) -> int:
    """Elements of the largest array that is no batch; whatever is larger is an activation."""
    return max(array.size for array in compiled.program.parameters if array.shape[:1] != (compiled.batch_size,))


def print_predictions(compiled: Compiled, options: argparse.Namespace) -> None:
    """What the time model has of each kind of kernel, and of folding each layer."""
    from resnet_flax.compiled.fold import foldable_layers, seconds_saved, verdict
    from resnet_flax.compiled.kernels import EFFICIENCIES
    from resnet_flax.compiled.step_time import shares_in_words

    print("\nby kind of kernel, as the time model has it")
    print("\n".join(f"  {line}" for line in shares_in_words(compiled.predicted())))
    print("\nshares of the peak rates, slow and fast: of bandwidth, of matrix products")
    for kind, efficiency in EFFICIENCIES.items():
        print(f"  {kind:<14} {efficiency.bandwidth}  {efficiency.rate}  {efficiency.source}")
    print("\nfolding a layer: pixels x channels in -> out, how many, microseconds saved in a step (least, most)")
    for layer, count in foldable_layers(options.model, options.batch_size, options.size).items():
        least, most = (seconds * 1e6 for seconds in seconds_saved(compiled.card, layer))
        print(f"  {layer[0]:>8} x {layer[1]:>4} -> {layer[2]:<5}{count:>3}{least:>8.0f}{most:>7.0f}  ", end="")
        print(verdict(compiled.card, layer))


def print_movers(compiled: Compiled, count: int) -> None:
    """The source lines that cause the most traffic, forward and backward separately."""
    bytes_of: dict[tuple[str, str], int] = defaultdict(int)
    for kernel in compiled.program.kernels:
        direction = "backward" if "transpose(" in kernel.instruction.rest else "forward"
        bytes_of[kernel.source or "(several lines)", direction] += kernel.bytes
    print(f"\nthe largest movers, MB an image of {compiled.megabytes_per_image:.1f}")
    for (source, direction), moved in sorted(bytes_of.items(), key=lambda item: -item[1])[:count]:
        print(f"  {moved / compiled.batch_size / 1e6:7.2f}  {direction:<8}  {source}")


def largest_batch(compiler: Compiler) -> tuple[int, int]:
    """The largest multiple of 32 images whose step's peak memory fits on the device, and that peak; by bisection."""
    room = int(compiler.card.memory * 0.92)  # XLA's allocator, the CUDA context and cuDNN's workspace take the rest
    fits, peak = 0, 0
    first = compiler.train()
    # Memory grows almost in proportion to the batch, so the search can begin around the estimate.
    guess = int(room / first.peak_memory * first.batch_size) // 32
    low, high = int(guess * 0.8), int(guess * 1.4)
    while low < high:
        middle = (low + high + 1) // 2
        compiled = compiler.train(middle * 32)
        if compiled.peak_memory <= room:
            low, fits, peak = middle, middle * 32, compiled.peak_memory
        else:
            high = middle - 1
    return fits, peak


def worker(options: argparse.Namespace) -> int:
    import jax

    from resnet_flax.errors import UserError

    jax.config.update("jax_platforms", "cpu")
    try:
        return _report(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _report(options: argparse.Namespace) -> int:
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "nvidia-cudnn-cu13"))
    one = Compiler(options)
    report = Report(f"{options.model}, {options.dtype}, {options.batch_size} images of {options.size} a GPU", versions)
    print(f"compiled for {one.card.name}, not run: {report.settings}; {versions}\n")
    print(f"{'':<68}{'ours':>10}{'Flax':>12}{'ratio':>8}")

    train = one.train()
    official = (options.model, options.size, options.dtype, options.target) == ("resnet50", 224, "bfloat16", "h100")
    report.compare("train", train, one.flax_train(), limits=official)
    state = len(train.program.parameters) - 2
    given = len(train.program.aliased)
    report.add("train: state buffers that are updated in place, of all", given, state, limit=given == state)
    layouts = Counter(kernel.instruction.attribute("dim_labels") for kernel in train.program.convolutions)
    report.add(
        "train: cuDNN convolutions in NHWC", sum(n for labels, n in layouts.items() if labels.startswith("b01f"))
    )
    report.compare("inference", one.infer(), one.flax_infer(), limits=False)
    if options.fits:
        batch, peak = largest_batch(one)
        report.add("train: largest batch that fits, multiples of 32", batch)
        report.add("train: its peak memory, GB", round(peak / 1e9, 2))

    if not options.single:
        setup = one.setup(one.config)
        arrays = one.arrays(setup)
        names = {*setup.network.parameters, *setup.network.live_statistics}
        needed = sum(arrays[name].size * 4 for name in names if not name.endswith("num_batches_tracked"))
        eight = Compiler(options, "1x8").train()
        report.collectives("train, 8 GPUs", eight, needed)
        for hosts in SCALES:
            for end, speed in zip(("low", "high"), eight.images_per_second(8, hosts), strict=True):
                report.add(f"train, {8 * hosts} GPUs: images/s predicted, {end}", speed)
        report.collectives("train, 2 hosts x 8 GPUs", Compiler(options, "2x8").train(), needed)
        synchronised = Compiler(options, "1x8", sync_bn=True).train()
        extra = len(synchronised.program.collectives) - len(eight.program.collectives)
        report.add("train, 8 GPUs, synchronised BN: all-reduces more", extra)
        moved = synchronised.megabytes_per_image
        report.add("train, 8 GPUs, synchronised BN: HBM traffic, MB an image", round(moved, 1))

    print_predictions(train, options)
    print_movers(train, options.movers)
    if options.json:
        options.json.write_text(json.dumps(report.rows, indent=1) + "\n")
    if report.failed:
        print(f"\n{len(report.failed)} limits missed: {'; '.join(report.failed)}", file=sys.stderr)
    return 1 if report.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="virtual environment to compile in; made if it is missing")
    parser.add_argument("--target", default="h100", help="the card: h100, h200, a100, b200, l4 or rtx4090")
    parser.add_argument("--fold", default="always", choices=("auto", "always", "never"))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch-size", type=int, default=256, help="images on each GPU")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--single", action="store_true", help="one GPU only")
    parser.add_argument("--fits", action="store_true", help="search the largest batch that fits; takes minutes")
    parser.add_argument("--movers", type=int, default=12, help="how many source lines to list")
    parser.add_argument("--hlo", type=Path, help="write the programs' texts into this directory")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    if options.hlo:
        options.hlo.mkdir(parents=True, exist_ok=True)
    if os.environ.get(WORKER):
        return worker(options)

    python = Path(sys.executable)
    if options.environment:
        python = options.environment / "bin" / "python"
        if not python.exists():
            print(f"making {options.environment} with the extras train and cuda13", flush=True)
            venv.create(options.environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[train,cuda13]"], check=True)
    # A process of its own: the variable has to be set before JAX starts, and XLA ends a process on a fatal error.
    environment = {**os.environ, WORKER: "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run([python, __file__, *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
