"""What the default test run costs, beside the same of another checkout: seconds of processor time, user's and system's.

usage: python benchmarks/cost_of_tests.py OLD [--json FILE]

Both run at once, each in one process on one core, with nothing compiled before, so that another job on the machine
slows both; OLD is a checkout of another commit. Tests are paired by name and parameters, wherever they have moved.
Printed are the whole run, from the start of Python on, the tests that both have, and the twenty that cost most in each.
Linux only; half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLOWEST = 20
PLUGIN = """
import json, os
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = os.times()
    result = yield
    spent = sum(os.times()[:4]) - sum(before[:4])
    with open(os.environ["SPENT"], "a") as file:
        file.write(json.dumps([item.nodeid, spent]) + "\\n")
    return result
"""


@dataclass(frozen=True)
class Run:
    """Of a whole run: seconds of processor time, what pytest said last, and seconds by test."""

    user: float
    system: float
    said: str
    tests: dict[str, float]


def run(checkout: Path, core: int) -> Run:
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary, "spent.py").write_text(PLUGIN)
        spent = Path(temporary, "spent.jsonl")
        environment = os.environ | {
            "PYTHONPATH": f"{checkout}{os.pathsep}{temporary}", "XDG_CACHE_HOME": temporary, "SPENT": str(spent)
        }  # fmt: skip
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = ["taskset", "-c", str(core), sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "spent"]
        log = Path(temporary, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "-p", "no:cacheprovider"], cwd=checkout, env=environment, stdout=output, stderr=output
            )
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        lines = log.read_text().splitlines()
        if process.returncode > 1:  # 1: some tests failed
            raise SystemExit("\n".join([f"pytest in {checkout} ended with {process.returncode}", *lines[-20:]]))
        print(*(f"{checkout.name}: {line}" for line in lines if line.startswith("FAILED")), sep="\n", flush=True)
        tests: dict[str, float] = {}
        for line in spent.read_text().splitlines():
            name, seconds = json.loads(line)
            tests[name] = seconds
        return Run(used.ru_utime, used.ru_stime, lines[-1], tests)


def name_of(test: str) -> str:
    """Without the file, which may have moved."""
    return test.partition("::")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="another checkout of this repository")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with ThreadPoolExecutor(2) as pool:
        here, old = pool.map(run, (ROOT, options.old.resolve()), (cores[0], cores[-1]))

    common = {name_of(test) for test in here.tests} & {name_of(test) for test in old.tests}
    rows = []
    for name, one in (("here", here), ("old", old)):
        shared = sum(seconds for test, seconds in one.tests.items() if name_of(test) in common)
        print(f"{name:<5}{one.user:7.0f} s user  {one.system:5.0f} s system  {len(one.tests):5} tests: {one.said}")
        print(f"     {shared:7.0f} s of processor time in the {len(common)} tests that both have")
        rows.append(shared)
    for name, one in (("here", here), ("old", old)):
        print(f"\nthe {SLOWEST} that cost most, {name}")
        for test in sorted(one.tests, key=one.tests.__getitem__, reverse=True)[:SLOWEST]:
            print(f"{one.tests[test]:7.1f} s  {test}")
    if options.json:
        row = {
            "what": "the default test run, user seconds",
            "ours": here.user, "peer": old.user, "ratio": here.user / old.user,
            "settings": {"common": rows, "here": asdict(here), "old": asdict(old)},
            "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "torch")},
        }  # fmt: skip
        options.json.write_text(json.dumps([row], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
