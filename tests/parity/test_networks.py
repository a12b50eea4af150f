"""Networks by name: what a package registers is found, and what cannot be found or loaded is said."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx

import parity.registry
from parity.commands import check
from parity.errors import ParityError
from parity.networks import family_of, identified, named_pair
from tests import ROOT

FAMILY = """
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from flax import nnx
from torch import nn

from parity.errors import UsageError


class Ours(nnx.Module):
    def __init__(self, features):
        self.conv = nnx.Conv(3, features, (1, 1), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x).mean((1, 2))


class Theirs(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.conv = nn.Conv2d(3, features, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@dataclass(frozen=True)
class Options:
    features: int = 5
    "Outputs of the only layer."


class Family:
    Options = Options

    def names(self):
        return ["one_layer"]

    def pair(self, name, options, *, weights=None):
        ours = nnx.eval_shape(lambda: Ours(options.features))
        return SimpleNamespace(
            flax_model=ours, torch_model=Theirs(options.features), channels=3, num_classes=options.features, train=None
        )

    def identify(self, shapes):
        raise UsageError("not recognised")

    def read(self, path):
        return SimpleNamespace(
            origin={"weight": "float32"},
            notes=("a note",),
            describe=lambda: "one_layer, 5 outputs",
            rows=lambda: [("outputs", "5")],
        )


FAMILY = Family()
"""


@pytest.fixture
def installed(tmp_path):
    """A distribution of somebody else's that registers a family; returns the environment that has it."""
    (tmp_path / "someones.py").write_text(FAMILY)
    folder = tmp_path / "someones-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: someones\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[parity.networks]\nsomeones = someones:FAMILY\n")
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def run(environment, *arguments):
    command = [sys.executable, "-m", "parity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_family_from_outside_is_checked_and_inspected(installed, tmp_path):
    done = run(installed, "check", "one_layer", "--features", "4", "--size", "2", "--checks", "forward,gradients")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one_layer in Flax and one_layer in PyTorch agree: float64, inputs 4x2x2x3")
    assert [line.partition(" s  ")[2] for line in done.stderr.splitlines()] == ["forward, 1 of 2", "gradients, 2 of 2"]
    (tmp_path / "weights.bin").write_bytes(b"not a ResNet")
    done = run(installed, "inspect", str(tmp_path / "weights.bin"))
    assert done.returncode == 0, done.stderr
    assert "outputs  5" in done.stdout
    assert "every entry fits one_layer" in done.stdout


def test_options_of_a_family_are_in_its_help(installed):
    assert "--features" in run(installed, "check", "one_layer", "--help").stdout
    assert "--features" not in run(installed, "check", "--help").stdout
    assert "--small-images" in run(installed, "check", "resnet18", "--help").stdout


def register(monkeypatch, **points):
    monkeypatch.setattr(
        parity.registry,
        "entry_points",
        lambda group: [EntryPoint(name, value, group) for name, value in points.items()],
    )
    parity.registry.registered.cache_clear()


@pytest.fixture(autouse=True)
def as_installed():
    yield
    parity.registry.registered.cache_clear()


def test_a_pair_by_name_has_equal_values():
    pair = named_pair("resnet18", seed=3, small_images=True)
    kernel = np.asarray(pair.flax_model.conv1.kernel[...]).transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel, pair.torch_model.conv1.weight.detach().numpy())
    assert kernel.shape[2:] == (3, 3)
    assert isinstance(pair.flax_model, nnx.Module)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ParityError, match=r"no network named 'resnet5O'; did you mean resnet50"):
        family_of("resnet5O")
    with pytest.raises(ParityError, match=r"no network named 'zzz'; registered are \d+, such as resnet18, resnet34,"):
        family_of("zzz")


def test_an_option_before_the_name_is_not_taken_for_it(capsys):
    with pytest.raises(ParityError, match="no network named 'resnet5O'"):
        check.main(["--batch", "2", "resnet5O"])
    with pytest.raises(SystemExit):
        check.main(["resnet18", "--smal-images"])
    assert "--small-images" in capsys.readouterr().err


def test_a_family_that_cannot_be_loaded_stops_no_other(monkeypatch):
    register(monkeypatch, broken="no_such_module:FAMILY", resnet_flax="resnet_flax.parity_networks:FAMILY")
    assert "resnet18" in family_of("resnet18").names()
    with pytest.raises(ParityError, match=r"no network named 'x'; .*; the networks of 'broken' .* cannot be loaded"):
        family_of("x")


def test_without_any_family_a_file_cannot_be_identified(monkeypatch):
    register(monkeypatch)
    with pytest.raises(ParityError, match=r"w.pth was not recognised; no networks are registered here"):
        identified(Path("w.pth"))
    with pytest.raises(ParityError, match="no networks are registered here"):
        family_of("resnet18")
