"""`check`, `record` and `diff` on whatever a function of the caller's returns."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from safetensors.numpy import save_file

import parity
from parity.__main__ import main
from parity.checks.relations import relation

MODULE = """
import numpy as np
import torch
from flax import nnx
import parity

class Ours(nnx.Module):
    def __init__(self):
        self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    def __call__(self, x):
        return self.head(x)

class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(x)

theirs = Theirs()
ours = parity.to_flax(theirs.state_dict(), Ours(), names={"head": "fc"})
inputs = parity.random_inputs((4, 3))
whole = lambda: (ours, theirs, inputs)
original = lambda: (theirs, inputs)
candidate = lambda: ours
needy = lambda x: x
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)
    (tmp_path / "names.json").write_text(json.dumps({"head": "fc"}))
    return tmp_path


def test_a_target_is_checked_recorded_and_checked_against_the_recording(folder, capsys):
    common = ["--names", "names.json", "--checks", "forward,gradients"]
    assert main(["check", "my_models:whole", *common, "--json", "out.json"]) == 0
    assert json.loads((folder / "out.json").read_text())["passed"]
    assert main(["check", "my_models:whole", *common, "--only", "fc.*"]) == 0
    assert "forward" not in capsys.readouterr().out.split("PyTorch's")[-1]
    assert main(["record", "my_models:original", "--out", "net.safetensors", "--checks", "forward,gradients"]) == 0
    assert main(["check", "my_models:candidate", "--reference", "net.safetensors", "--names", "names.json"]) == 0
    assert main(["diff", "net.safetensors", "net.safetensors"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "no_such_module:pair"], "there is no module no_such_module"),
        (["check", "my_models:nothing"], "my_models has nothing of that name; its functions are"),
        (["check", "my_models:number"], "my_models has something of type int"),
        (["check", "my_models:needy"], "it must need no arguments"),
        (["check", "my_models:candidate"], "must return (candidate, reference, inputs); it returned 1 values"),
        (["check", "my_models:whole", "--reference", "x.safetensors"], "must return the candidate, or"),
        (["check", "my_models:whole", "--names", "no.json"], "no.json cannot be read"),
        (["check", "my_models:whole", "--names", "names.json", "--only", "x*"], "no tensor compared has such a name"),
        (["check", "my_models:"], "expected package.module:function"),
        (["record", "my_models:whole", "--out", "x.safetensors"], "must return (network, inputs)"),
        (["record", "my_models:original", "--out", "x.npz"], "a recording's name ends in .safetensors"),
    ],
)
def test_unusable_targets_are_one_sentence(folder, capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_two_checkpoints_are_compared_by_relation(tmp_path, capsys):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype("f")
    save_file({"a": weight, "b": weight, "only": weight}, one)
    save_file({"a": weight, "b": 2 * weight, "new": weight}, two)
    assert main(["diff", str(one), str(two)]) == 1
    output = capsys.readouterr().out
    for words in ("B is 2 times A", "only in A", "only in B", "1 of 4 tensors are equal"):
        assert words in output
    parity.load_checkpoint(one)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.copy(), "equal"),
        (lambda x: np.ascontiguousarray(x.T), "transposed by (1, 0)"),
        (lambda x: -0.5 * x, "B is -0.5 times A"),
        (lambda x: x + 3, "B is A plus 3"),
        (lambda x: x[[2, 0, 1, 3]], "slices along axis 0 in another order"),
        (lambda x: x[:, [2, 0, 1]], "slices along axis 1 in another order"),
        (lambda x: x.astype(np.float16).astype(x.dtype), "B is A rounded to float16"),
        (lambda x: x.reshape(2, 6), "reshaped from (4, 3) to (2, 6)"),
        (lambda x: x[:2], "of other sizes"),
        (lambda x: x**2, "relative error"),
    ],
)
def test_relations(change, words):
    array = np.random.default_rng(0).normal(size=(4, 3))
    assert words in relation(array, change(array))
