"""A recording made with PyTorch is the reference of a process in which PyTorch cannot be imported."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from safetensors.numpy import load_file, save_file

import parity
from tests import ROOT
from tests.parity.sides.test_any_sides import INPUTS, FlaxNet, TorchNet

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # any import of it fails
import parity
from tests.parity.sides.recorded_twin import FlaxNet
ours = parity.to_flax(parity.load_checkpoint(sys.argv[1]), FlaxNet())
report = parity.check(ours, sys.argv[1])
print(report)
assert report.passed
ours.conv.padding = "VALID"
report = parity.check(ours, sys.argv[1], checks=("activations",))
assert report.findings[0].where == "conv", report
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    theirs = TorchNet()
    parity.randomize(None, theirs)
    path = tmp_path_factory.mktemp("recorded") / "net.safetensors"
    parity.record(theirs, np.moveaxis(INPUTS, -1, 1), path, steps=2, optimizer="adam", seed=0)
    return path


@pytest.fixture(scope="module")
def ours(recorded):
    return parity.to_flax(parity.load_checkpoint(recorded), FlaxNet())


def test_every_check_agrees_and_has_the_recorded_floors(recorded, ours):
    report = parity.check(ours, recorded)
    assert report.passed, str(report)
    assert {row.check for row in report.comparisons} == {
        "forward", "activations", "gradients", "batch_stats", "optimizer",
    }  # fmt: skip
    assert all(row.floor > 0 for row in report.of("forward"))
    assert report.settings["recorded with"]["versions"]["torch"] == torch.__version__
    assert not report.notes


def test_differences_are_found(recorded, ours):
    changed = nnx.clone(ours)
    changed.fc.bias[...] += 1e-3
    report = parity.check(changed, recorded)
    assert not report.passed
    assert "1 of 9 parameters and statistics are not those recorded" in " ".join(report.notes)


def test_without_pytorch(recorded, tmp_path):
    source = (ROOT / "tests/parity/sides/test_any_sides.py").read_text()
    start, end = source.index("class FlaxNet"), source.index("class LinenNet")
    twin = "from flax import nnx\nfrom resnet_flax.layers import BatchNorm\n" + source[start:end]
    program = WITHOUT_TORCH.replace("from tests.parity.sides.recorded_twin import FlaxNet", twin)
    done = subprocess.run(
        [sys.executable, "-c", program, str(recorded)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_what_matches_is_kept_and_digests_replace_weights(ours, recorded, tmp_path):
    path = tmp_path / "small.safetensors"
    parity.record(ours, INPUTS, path, checks=("forward", "activations"), only=("fc",), weights="digest")
    assert path.stat().st_size < recorded.stat().st_size
    report = parity.check(ours, path)
    assert report.passed, str(report)
    assert {row.name for row in report.of("activations")} == {"fc"}
    with pytest.raises(parity.ParityError, match="digests of the weights only"):
        parity.load_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checks": ("trajectory",)}, "was not recorded for trajectory, but for forward"),
        ({"precision": "float32"}, "was recorded in float64: check with precision='float64'"),
        ({"inputs": INPUTS + 1}, "has no pass in eval mode over these inputs"),
        ({"optimizer": "sgd"}, "was recorded with an optimiser of kind adam, found sgd"),
        ({"loss": (sum, sum)}, "was recorded with the default loss"),
    ],
)
def test_what_a_recording_cannot_answer_is_refused(recorded, ours, options, words):
    with pytest.raises(parity.ParityError, match=words):
        parity.check(ours, recorded, **options)


def test_damaged_and_foreign_files_are_one_sentence(recorded, ours, tmp_path):
    def refused(path, words):
        with pytest.raises(parity.ParityError, match=words):
            parity.check(ours, path)

    cut, plain, later = (tmp_path / f"{name}.safetensors" for name in ("cut", "plain", "later"))
    cut.write_bytes(recorded.read_bytes()[:5000])
    refused(cut, "truncated or not a safetensors file")
    save_file({"a": np.zeros(2)}, plain)
    refused(plain, "is a checkpoint, not a recording")
    save_file(load_file(recorded), later, {"format": "parity-recording", "schema": "99", "about": json.dumps({})})
    refused(later, "has schema 99 of recordings, and this version reads schema 1")
    refused(tmp_path / "none.safetensors", "does not exist")
    refused("net.npz", "a recording's name ends in .safetensors")


def test_given_outputs_are_a_reference(ours):
    outputs = np.asarray(ours(INPUTS))
    report = parity.check(ours, {"output": outputs}, INPUTS, precision="float32")
    assert report.passed, str(report)
    assert not parity.check(ours, {"output": outputs + 1e-3}, INPUTS, precision="float32").passed


def test_a_random_network_is_not_recorded(tmp_path):
    class Random(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(6, 6)

        def forward(self, x):
            return torch.nn.functional.dropout(self.fc(x))

    with pytest.raises(parity.ParityError, match="does not agree with itself in output"):
        parity.record(Random(), parity.random_inputs((4, 6)), tmp_path / "x.safetensors", checks=("forward",))
