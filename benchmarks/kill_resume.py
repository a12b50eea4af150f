"""Kills training runs with SIGKILL at random moments, resumes them, and compares the end with a run left alone.

usage: python benchmarks/kill_resume.py [--kills 20] [--epochs 16] [--seed 0] [--json FILE]

Every moment counts: start-up, steps, evaluation, the writing of checkpoints. The final states (parameters, statistics,
optimiser, moving average, step, random key) must be equal bit for bit, and no resumed run may have lost more than one
checkpoint interval. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent
EVERY = 3  # steps between checkpoints
OPTIONS = (
    *("digits", "--device", "cpu", "--data", "synthetic:8x8x1:256", "--batch-size", "32", "--image-size", "8"),
    *("--checkpoint-every", str(EVERY), "--log-every", "1"),
    *("--ema-decay", "0.9", "--stochastic-depth", "0.2", "--mixup", "0.2"),
)


def start(workdir: Path, epochs: int) -> subprocess.Popen:
    """A new run, or the same one resumed."""
    begun = (workdir / "config.json").exists()
    arguments = ["--resume"] if begun else [*OPTIONS, "--epochs", str(epochs)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "--workdir", str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}:\n{output}")


def wait(process: subprocess.Popen, workdir: Path, rng: random.Random) -> None:
    """Until a random moment: during start-up, or some while after a few more steps."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 8))
        return
    begun, wanted = steps_logged(workdir), rng.randint(1, 2 * EVERY)
    while process.poll() is None and steps_logged(workdir) < begun + wanted:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 2))


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    path = (workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "state").absolute()
    restored = ocp.StandardCheckpointer().restore(path)
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(restored)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=16, help="of 8 steps each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(start(whole, options.epochs))
        lives, lost = 0, 0
        for number in range(options.kills):
            process = start(killed, options.epochs)
            wait(process, killed, rng)
            if process.poll() is not None:
                break
            process.kill()
            process.communicate()
            lives += 1
            reached, kept = steps_logged(killed), max(checkpoints(killed), default=0)
            lost = max(lost, reached - kept)
            print(f"kill {number + 1}: {reached} steps done, {kept} kept", flush=True)
        finish(start(killed, options.epochs))

        expected, found = final_state(whole), final_state(killed)
        differing = [name for name in expected if expected[name].tobytes() != found[name].tobytes()]
        # A checkpoint is written in the background while up to one more interval is trained.
        holds = not differing and expected.keys() == found.keys() and lost <= 2 * EVERY and lives == options.kills
        print(f"{lives} kills, {len(expected)} arrays, {len(differing)} differ; at most {lost} steps lost")
        if options.json:
            row = {
                "what": "arrays that differ after kills and resumes",
                "ours": len(differing),
                "steps lost": lost,
                "settings": f"{lives} kills, {len(expected)} arrays, a checkpoint every {EVERY} steps",
                "versions": f"jax {jax.__version__}",
            }
            options.json.write_text(json.dumps([row], indent=2) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
