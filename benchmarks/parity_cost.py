"""What `python -m parity check NAME` costs, beside the same command of other checkouts.

usage: python benchmarks/parity_cost.py [--networks resnet18 resnet50] [--old DIR ...] [--rounds 3] [--json FILE]

The checkouts alternate, each check is a process of its own, and medians count: seconds, seconds of processor time
(which a busy machine changes less), peak memory (RSS). Compiled programs are kept nowhere, as in the first check of a
network; "again" is a second check, which finds them. The number of comparisons is the coverage. Exit status 1 if a
verdict or a number of comparisons is not the same in every round of a checkout. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cost:
    """Of one check: seconds, seconds of both cores, gigabytes, comparisons made and failed."""

    seconds: float
    processor: float
    memory: float
    compared: int
    failed: int


def check(network: str, checkout: Path, cache: Path) -> Cost:
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.json")
        environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "parity", "check", network, "--json", str(report)],
            cwd=checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode > 1:
            raise SystemExit(f"parity check {network} in {checkout} ended with {process.returncode}")
        rows = json.loads(report.read_text())["comparisons"]
        return Cost(
            time.perf_counter() - began,
            used.ru_utime + used.ru_stime,
            used.ru_maxrss / 1e6,
            len(rows),
            sum(not row["passed"] for row in rows),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--old", nargs="*", type=Path, default=[], help="other checkouts of this repository")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    rows, steady = [], True
    for network in options.networks:
        costs: dict[str, list[Cost]] = {}
        for _ in range(options.rounds):
            for checkout in (*(old.resolve() for old in options.old), ROOT):
                with tempfile.TemporaryDirectory() as cache:
                    name = "here" if checkout == ROOT else checkout.name
                    costs.setdefault(name, []).append(check(network, checkout, Path(cache)))
                    if checkout == ROOT:
                        costs.setdefault("here, again", []).append(check(network, checkout, Path(cache)))
        medians = {
            name: {field: statistics.median(asdict(one)[field] for one in several) for field in asdict(several[0])}
            for name, several in costs.items()
        }
        for name, cost in medians.items():
            steady &= len({(one.compared, one.failed) for one in costs[name]}) == 1
            ratios = [f"{medians['here'][field] / cost[field]:.2f}" for field in ("seconds", "processor", "memory")]
            print(
                f"{network:<12} {name:<12} {cost['seconds']:6.1f} s  {cost['processor']:6.1f} s of processor time  "
                f"{cost['memory']:5.2f} GB  {cost['compared']:.0f} compared, {cost['failed']:.0f} failed  "
                f"here/this {', '.join(ratios)}"
            )
            if name not in ("here", "here, again"):
                rows.append({
                    "what": f"parity check {network}, seconds of processor time, beside {name}",
                    "ours": medians["here"]["processor"], "peer": cost["processor"],
                    "ratio": medians["here"]["processor"] / cost["processor"],
                    "settings": {"medians": medians, "rounds": options.rounds},
                    "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "torch")},
                })  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
