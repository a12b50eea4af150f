"""Time ResNets on a CPU: this library, the same model with XLA's own layers, and torchvision's.

    python benchmarks/cpu_vs_torch.py                            # ResNet-50, batch 16, 224 pixels; minutes
    python benchmarks/cpu_vs_torch.py --models resnet18 resnet50 resnext50_32x4d --batches 1 16 32 --sizes 64 224 \
        --peers XLA torch "torch channels_last" torch.compile --json cpu.json --plot cpu.png   # everything; hours

Three passes, in float32 with random weights and inputs: inference (eval mode), gradients (train mode, cross-entropy,
all parameters), and a train step (gradients and SGD with momentum; the JAX state is donated). Every variant lives in a
process of its own, which gives its compile time and peak memory; the processes take turns, one call a round, with the
same number of threads, so that a busy machine slows all of them alike. All that train keep the memory that they free,
as `train.py` does on a CPU. The figures are medians over the rounds.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from resnet_flax.training.devices import keep_freed_memory

PASSES = ("inference", "gradients", "train step")
OURS = "ours"
PEERS = ("XLA", "torch", "torch channels_last", "torch.compile")
CLASSES = 1000
LEARNING_RATE, MOMENTUM = 0.1, 0.9

Case = tuple[str, int, int, str]  # model, batch, size, pass
Call = Callable[[], Any]


def batch_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    _, batch, size, _ = case
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, size, size, 3), np.float32), rng.integers(0, CLASSES, batch)


def jax_call(case: Case, *, plain: bool) -> tuple[Call, float]:
    """One call of the pass, and the seconds it took to compile. `plain`: XLA's own convolutions and max-pool."""
    import jax
    import optax
    from flax import nnx

    import resnet_flax
    from resnet_flax.layers import pooling

    if plain:
        pooling._max_pool = pooling._xla
    model = resnet_flax.create_model(case[0], num_classes=CLASSES, rngs=nnx.Rngs(0))
    if plain:
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = jax.lax.conv_general_dilated
    if case[3] != "inference":
        model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    state = (nnx.to_pure_dict(params), nnx.to_pure_dict(rest))
    images, labels = jax.device_put(batch_of(case))
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    def loss(params, rest, images, labels):
        model = nnx.merge(graphdef, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])

    def inference(params, rest, images, labels):
        return nnx.merge(graphdef, params, rest, copy=True)(images)

    def train_step(state, images, labels):
        params, rest, moments = state
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, images, labels)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), rest, moments), value

    def compiled(function, *arguments, **options):
        start = time.perf_counter()
        return jax.jit(function, **options).lower(*arguments).compile(), time.perf_counter() - start

    if case[3] == "train step":
        holder = [(*state, optimizer.init(state[0]))]
        step, seconds = compiled(train_step, holder[0], images, labels, donate_argnums=0)

        def call():
            holder[0], value = step(holder[0], images, labels)
            return value.block_until_ready()

        return call, seconds
    function = inference if case[3] == "inference" else jax.grad(loss, has_aux=True)
    run, seconds = compiled(function, *state, images, labels)
    return lambda: jax.block_until_ready(run(*state, images, labels)), seconds


def torch_call(case: Case, *, threads: int, variant: str) -> tuple[Call, float]:
    """One call of the pass. Compile time is that of the first call, 0 for eager mode."""
    import torch
    import torchvision

    torch.set_num_threads(threads)
    layout = torch.contiguous_format if variant == "torch" else torch.channels_last
    model = torchvision.models.get_model(case[0], num_classes=CLASSES).to(memory_format=layout)
    model.train(case[3] != "inference")
    images, labels = (torch.from_numpy(array) for array in batch_of(case))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    forward = torch.compile(model) if variant == "torch.compile" else model

    def inference():
        with torch.inference_mode():
            forward(images)

    def gradients():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(images), labels).backward()

    def train_step():
        gradients()
        optimizer.step()

    call = {"inference": inference, "gradients": gradients, "train step": train_step}[case[3]]
    start = time.perf_counter()
    if variant == "torch.compile":
        call()
    return call, time.perf_counter() - start if variant == "torch.compile" else 0.0


def serve(connection: Connection, case: Case, variant: str, threads: int) -> None:
    """A process of one variant: sends its compile time, then the seconds of a call whenever asked, then its memory."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # XLA takes as many threads
    if case[3] != "inference":
        keep_freed_memory()
    try:
        if variant in (OURS, "XLA"):
            call, seconds = jax_call(case, plain=variant == "XLA")
        else:
            call, seconds = torch_call(case, threads=threads, variant=variant)
        call()  # warm
    except Exception as error:  # torch.compile may not work here; the others are still worth comparing
        connection.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return
    connection.send(seconds)
    while connection.recv():
        start = time.perf_counter()
        call()
        connection.send(time.perf_counter() - start)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(case: Case, variants: list[str], threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a call, compile seconds and peak MB of every variant that works."""
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Connection, Any]] = {}
    found: dict[str, dict[str, float]] = {}
    for variant in variants:  # one after the other: compile times too are to be compared
        connection, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, case, variant, threads), daemon=True)
        process.start()
        theirs.close()
        try:
            seconds = connection.recv()
        except EOFError:
            seconds = "the process died"
        if isinstance(seconds, str):
            print(f"skipped: {variant}, {case}: {seconds}")
            continue
        running[variant] = connection, process
        found[variant] = {"compile": seconds}
    times: dict[str, list[float]] = {variant: [] for variant in running}
    for _, (variant, (connection, _)) in itertools.product(range(rounds), running.items()):
        connection.send(True)
        times[variant].append(connection.recv())
    for variant, (connection, process) in running.items():
        connection.send(False)
        found[variant] |= {"seconds": statistics.median(times[variant]), "memory": connection.recv()}
        process.join()
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(row["what"] for row in rows))
    peers = [peer for peer in PEERS if any(row["peer_name"] == peer for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.2 * len(cases) * (len(peers) + 1)), layout="constrained")
    height = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        ratios = {row["what"]: row["ratio"] for row in rows if row["peer_name"] == peer}
        places = [cases.index(case) + i * height for case in ratios]
        bars = axes.barh(places, list(ratios.values()), height, label=f"time / {peer}'s")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("our time divided by the peer's: left of the line is faster")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224], help="pixels")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS[:3]))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw the ratios here, as PNG")
    options = parser.parse_args()

    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "torchvision"))
    settings = f"float32, {options.threads} threads, median of {options.rounds} rounds"
    rows: list[dict[str, Any]] = []
    table = Table("model, batch, pixels, pass", "variant", "ms", "ours / it", "compile s", "peak MB", title=settings)
    for case in itertools.product(options.models, options.batches, options.sizes, options.passes):
        found = measure(case, [OURS, *options.peers], options.threads, options.rounds)
        ours = found[OURS]
        what = "{} {} x {} px {}".format(*case)
        for variant, figures in found.items():
            ratio = ours["seconds"] / figures["seconds"]
            cells = (f"{figures['seconds'] * 1e3:.1f}", f"{ratio:.2f}", f"{figures['compile']:.1f}")
            table.add_row(what if variant == OURS else "", variant, *cells, f"{figures['memory']:.0f}")
            if variant != OURS:
                row = {"what": what, "ours": ours["seconds"], "peer": figures["seconds"], "ratio": ratio}
                more = {"peer_name": variant, "unit": "s"}
                for name in ("compile", "memory"):
                    more |= {f"ours_{name}": ours[name], f"peer_{name}": figures[name]}
                rows.append({**row, **more, "settings": settings, "versions": versions})
        table.add_section()
        if options.json:  # after every case: a long run that is stopped keeps what it has
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console().print(table)
    print(versions)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
