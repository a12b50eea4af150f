"""benchmarks/gpu_day.py: its plan, its two files, its summary of a trace, and a run of it on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from resnet_flax.compiled.cards import CARDS
from resnet_flax.compiled.program import CompiledProgram
from resnet_flax.compiled.step_time import StepTime
from tests import ROOT
from tests.resnet_flax.compiled.test_program import CONVOLUTION, program


@pytest.fixture
def day(monkeypatch):
    return load("gpu_day", monkeypatch)


def load(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_day.py"), *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_everything_fits_into_nine_minutes_and_less_leaves_out_what_does_not(day):
    assert all(fits for _, fits in day.plan(9, day.PARTS))
    for minutes in (0.5, 2, 4.5, 8):
        planned = day.plan(minutes, day.PARTS)
        assert [part for part, _ in planned] == list(day.PARTS)
        assert sum(part.seconds for part, fits in planned if fits) <= 60 * minutes
        left = 60 * minutes - day.RESERVE - sum(part.seconds for part, fits in planned if fits)
        assert all(part.seconds > left for part, fits in planned if not fits)


def test_dry_prints_each_part_with_its_estimate_and_runs_nothing(day, monkeypatch, capsys):
    monkeypatch.setattr(day, "run", None)
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--minutes", "9", "--dry"])
    assert day.main() == 0
    printed = capsys.readouterr().out
    assert all(f"{part.seconds:>4} s  {part.name}\n" in printed for part in day.PARTS)


def test_what_fails_is_named_and_does_not_stop_the_rest(day, monkeypatch, tmp_path, capsys):
    answers = {
        "versions and device": [{"what": "device", "ours": "NVIDIA X", "peer": None}],
        "train": [{"what": "images/s", "ours": 9.0, "peer": "predicted 10 to 20", "holds": False}],
        "parity resnet18": [{"what": "out of tolerance", "ours": 2, "peer": 0, "holds": False}],
    }

    def fake(part, options, limit):
        if part.name == "inference":
            raise RuntimeError("failed with status 1: no memory")
        return answers[part.name]

    monkeypatch.setattr(day, "run", fake)
    files = ["--json", str(tmp_path / "day.json"), "--markdown", str(tmp_path / "day.md")]
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", *files, "--parts", "inference", *answers])
    assert day.main() == 1
    failed = capsys.readouterr().err
    assert "inference" in failed
    assert "out of tolerance" in failed
    assert "images/s" not in failed  # a refuted prediction is a result
    rows = json.loads((tmp_path / "day.json").read_text())
    assert [row["what"] for row in rows] == ["device", "out of tolerance", "images/s"]
    assert {"what", "ours", "peer", "ratio", "settings", "versions"} <= set(rows[0])
    written = (tmp_path / "day.md").read_text()
    assert "| images/s | 9.0 | predicted 10 to 20 | NO |" in written
    assert "no memory" in written


def test_a_part_that_no_longer_fits_is_skipped_and_one_that_hangs_is_stopped(day, monkeypatch, capsys):
    hours = iter([0, 0, 0, 0, 10**4])
    monkeypatch.setattr(day.time, "monotonic", lambda: next(hours, 10**4))
    monkeypatch.setattr(day, "run", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--parts", "train", "profile"])
    assert day.main() == 0
    assert "profile: skipped: 50 s estimated, 0 s left" in capsys.readouterr().out
    monkeypatch.undo()
    sleeping = load("gpu_day", monkeypatch)
    options = SimpleNamespace(device="cpu", tiny=True)
    with pytest.raises(RuntimeError, match=r"stopped after 0 s"):
        sleeping.run(sleeping.PARTS[0], options, 0.05)


def test_a_trace_by_kind_of_kernel_beside_the_prediction(monkeypatch):
    parts = load("gpu_day_parts", monkeypatch)
    fusion = "  %f = bf16[8,4,4,16]{3,2,1,0} fusion(%output.1, %vector), kind=kLoop, calls=%fused_relu"
    read = program(CONVOLUTION.format(n=1), fusion)

    def event(name, start, duration, operation=None):
        stats = [("hlo_op", operation)] if operation else []
        return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats)

    events = [
        event("cudnn kernel", 1000, 4_000_000, "cudnn-conv.1"),
        event("loop", 5_001_000, 1_000_000, "f"),
        event("memset", 6_001_000, 2_000_000),
    ]
    plane = SimpleNamespace(name="/device:GPU:0", lines=[SimpleNamespace(events=events)])
    host = SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(events=[event("loop", 0, 10**9, "f")])])
    rows = parts.summarise(SimpleNamespace(planes=[plane, host]), read, 2, CARDS["h100"])
    found = {row["what"]: row for row in rows}
    assert found["convolution: ms a step"]["ours"] == 2
    assert found["elementwise: ms a step"]["ours"] == 0.5
    slow, fast = next(one.seconds for one in StepTime(read, CARDS["h100"]).kernels if one.kind == "convolution")
    assert found["convolution: ms a step"]["peer"] == f"predicted {1e3 * fast:.2f} to {1e3 * slow:.2f}"
    assert found["convolution: ms a step"]["holds"] is False
    (gap,) = (row["ours"] for what, row in found.items() if "none runs" in what)
    assert gap == pytest.approx(1 / 6, rel=1e-3)
    assert found["without an instruction's name, memset: ms a step"]["ours"] == 1


def test_a_trace_of_this_machine_names_the_programs_instructions(monkeypatch):
    parts = load("gpu_day_parts", monkeypatch)
    x = jnp.ones((64, 64))
    compiled = jax.jit(lambda x: jnp.sin(x) @ x + 1).lower(x).compile()
    results = []

    def step():
        results.append(compiled(x))

    step()
    data = parts.trace(step, lambda: jax.block_until_ready(results), 3)
    rows = parts.summarise(data, CompiledProgram(compiled.as_text()), 3, None)
    assert any(row["what"].endswith(": ms a step") and row["ours"] > 0 for row in rows)


def test_a_part_runs_in_a_process_of_its_own_on_a_cpu(tmp_path):
    report = tmp_path / "day.json"
    done = run("--device", "cpu", "--tiny", "--json", str(report), "--parts", "versions and device")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in json.loads(report.read_text())}
    assert rows["device"]["ours"] == "cpu"
    assert rows["jax"]["versions"].startswith(f"jax {jax.__version__}, ")


@pytest.mark.full
def test_all_of_it_on_a_cpu(tmp_path):
    pytest.importorskip("torchvision", reason="compares with PyTorch")
    report, page = tmp_path / "day.json", tmp_path / "day.md"
    files = ("--json", str(report), "--markdown", str(page))
    done = run("--device", "cpu", "--tiny", "--minutes", "60", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())
    assert all(row["holds"] for row in rows if "holds" in row)
    assert sum("images/s" in row["what"] for row in rows) >= 6
    assert page.read_text().count("\n|") > len(rows)
