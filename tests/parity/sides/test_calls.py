"""Several inputs, modes given at call time and gradients of activations, for every kind of side and for recordings."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity

X, GATE = parity.random_inputs((3, 6)), parity.random_inputs((3, 4), seed=1)
NAMED = {"x": X, "gate": GATE, "mask": GATE > 0, "scaled": True}
CHECKS = ("forward", "activations", "gradients", "activation_gradients")


class TorchGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x, gate, mask=None, scaled=False):
        y = self.fc(x) * torch.sigmoid(gate) * (2 if scaled else 1)
        return self.out(torch.tanh(y if mask is None else y.masked_fill(~mask, 0)))


class FlaxGate(nnx.Module):
    def __init__(self, pass_on=lambda y: y):
        rngs = nnx.Rngs(0)
        self.fc, self.out, self.pass_on = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs), pass_on

    def __call__(self, x, gate, mask=None, scaled=False):
        y = self.pass_on(self.fc(x)) * nnx.sigmoid(gate) * (2 if scaled else 1)
        return self.out(nnx.tanh(y if mask is None else jnp.where(mask, y, 0)))


class LinenGate(flax.linen.Module):
    stopped: bool = False

    @flax.linen.compact
    def __call__(self, x, gate, train=False):
        y = flax.linen.Dense(4, name="fc")(x)
        y = jax.lax.stop_gradient(y) if self.stopped else y
        y = y * (1.5 if train else 1) * nnx.sigmoid(gate)
        return flax.linen.Dense(2, name="out")(nnx.tanh(y))


class TorchModal(TorchGate):
    def forward(self, x, gate):
        return super().forward(x * 1.0, gate) if not self.training else self.out(torch.tanh(
            1.5 * self.fc(x) * torch.sigmoid(gate)))  # fmt: skip


def function(parameters, x, gate, is_training=False):
    y = x @ parameters["fc"]["w"] + parameters["fc"]["b"][None]
    y = jnp.tanh(y * (1.5 if is_training else 1) * nnx.sigmoid(gate))
    return y @ parameters["out"]["w"] + parameters["out"]["b"][None]


@pytest.fixture(scope="module")
def theirs():
    network = TorchGate()
    parity.randomize(None, network)
    return network


@pytest.fixture(scope="module")
def modal(theirs):
    network = TorchModal()
    network.load_state_dict(theirs.state_dict())
    return network


@pytest.fixture(scope="module")
def ours(theirs):
    return parity.to_flax(theirs.state_dict(), FlaxGate())


def test_linen_takes_several_inputs_and_its_mode_and_gives_gradients_of_activations(modal):
    filled = parity.to_flax(modal.state_dict(), LinenGate().init(jax.random.key(0), X, GATE))
    report = parity.check((LinenGate(), filled), modal, (X, GATE), checks=CHECKS)
    assert report.passed, str(report)
    assert {row.mode for row in report.comparisons} == {"eval", "train"}
    assert [row.name for row in report.of("activation_gradients")] == ["fc", "out"] * 2
    assert report.settings["modes passed at call time"]["Linen"] == {"train": True}
    report = parity.check((LinenGate(stopped=True), filled), modal, (X, GATE), checks=CHECKS)
    failed = {row.name for row in report.failures if row.check == "activation_gradients"}
    assert failed == {"fc"}


def test_a_function_takes_several_inputs_and_its_mode(modal):
    shapes = {"fc": (6, 4), "out": (4, 2)}
    tree = {name: {"w": np.zeros(shape, np.float32), "b": np.zeros(shape[1], np.float32)}
            for name, shape in shapes.items()}  # fmt: skip
    tree = parity.to_flax(modal.state_dict(), tree)
    for inputs in ((X, GATE), {"gate": GATE, "x": X}):
        report = parity.check((function, tree), modal, inputs, checks=("forward", "gradients"))
        assert report.passed, str(report)
        assert {row.mode for row in report.comparisons} == {"eval", "train"}
        assert len([row for row in report.comparisons if row.name.startswith("(inputs)")]) == 4
    unmoved = lambda parameters, x, gate: function(parameters, x, gate)  # noqa: E731  (it has no train mode)
    report = parity.check((unmoved, tree), modal, (X, GATE), checks=("forward",))
    assert {row.mode for row in report.failures} == {"train"}


def test_a_recording_holds_several_inputs_and_gradients_of_activations(theirs, ours, tmp_path):
    path = tmp_path / "gate.safetensors"
    parity.record(theirs, NAMED, path, checks=(*CHECKS, "optimizer"), steps=2)
    report = parity.check(ours, path)
    assert report.passed, str(report)
    assert {row.name for row in report.of("gradients")} >= {"(loss)", "(inputs).x", "(inputs).gate", "fc.weight"}
    assert [row.name for row in report.of("activation_gradients")] == ["fc", "out"]
    assert all(0 < row.floor < 1e-10 for row in report.of("activation_gradients"))
    stopped = parity.to_flax(theirs.state_dict(), FlaxGate(jax.lax.stop_gradient))
    report = parity.check(stopped, path)
    assert {row.name for row in report.failures if row.check == "activation_gradients"} == {"fc"}
    with pytest.raises(parity.ParityError, match="has no pass in eval mode over these inputs"):
        parity.check(ours, path, NAMED | {"scaled": False})


def test_what_was_not_recorded_is_refused_in_words(theirs, ours, tmp_path):
    path = tmp_path / "forward.safetensors"
    parity.record(theirs, (X, GATE), path, checks=("forward", "batch_stats"))
    assert parity.check(ours, path).passed
    with pytest.raises(parity.ParityError, match="was not recorded for activation_gradients, but for forward"):
        parity.check(ours, path, checks=("activation_gradients",))
    with pytest.raises(parity.ParityError, match="has no pass in train mode over these inputs"):
        parity.check(ours, path, checks=("forward",), modes=("train",))


def test_a_mode_that_a_recording_lacks_is_a_warning(modal, ours, tmp_path):
    path = tmp_path / "eval.safetensors"
    eval_only = TorchGate()
    eval_only.load_state_dict(modal.state_dict())
    parity.record(eval_only, (X, GATE), path, checks=("forward",))
    filled = parity.to_flax(modal.state_dict(), LinenGate().init(jax.random.key(0), X, GATE))
    report = parity.check((LinenGate(), filled), path)
    assert report.passed, str(report)
    assert "PyTorch was recorded without train mode, which was not compared" in report.warnings


def test_between_two_of_one_layout_square_axes_leave_nothing_open():
    class Turned(nnx.Module):
        def __init__(self, axes):
            self.conv, self.axes = nnx.Conv(4, 4, (1, 1), rngs=nnx.Rngs(0)), axes

        def __call__(self, x):
            return self.conv(x).transpose(self.axes)

    inputs = parity.random_inputs((2, 4, 4, 4))
    straight = Turned((0, 1, 2, 3))
    assert parity.check(straight, nnx.clone(straight), inputs, checks=("forward",)).passed
    assert not parity.check(Turned((0, 3, 1, 2)), straight, inputs, checks=("forward",)).passed


def test_a_submodule_that_the_reference_calls_inside_jit_is_named(theirs, ours):
    class Hidden(FlaxGate):
        def __call__(self, x, gate):
            return self.out(nnx.tanh(jax.checkpoint(self.fc)(x) * nnx.sigmoid(gate)))

    hidden = parity.to_flax(theirs.state_dict(), Hidden())
    for candidate, reference, name in ((hidden, ours, "Flax (candidate)"), (ours, hidden, "Flax (reference)")):
        report = parity.check(candidate, reference, (X, GATE), checks=("forward", "activations"))
        assert report.passed, str(report)
        assert any(f"fc of the {name} network was not seen" in warning for warning in report.warnings), report
