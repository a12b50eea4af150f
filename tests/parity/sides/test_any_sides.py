"""Sides of every kind against each other: what agrees agrees, and a planted difference is found in each."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity
from parity.sides.flax import in_order
from resnet_flax.layers import BatchNorm

INPUTS = parity.random_inputs((4, 6, 6, 6))  # as many rows as channels, which a wrong layout would hide


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class FlaxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(6, 6, (3, 3), padding=1, rngs=rngs)
        self.bn, self.fc = BatchNorm(6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


class LinenNet(flax.linen.Module):
    padding: int = 1

    @flax.linen.compact
    def __call__(self, x, train=False):
        x = flax.linen.Conv(6, (3, 3), padding=self.padding, name="conv")(x)
        x = flax.linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="bn")(x)
        return flax.linen.Dense(5, name="fc")(jax.nn.relu(x).mean((1, 2)))


def function(parameters, x, slope=1.0):
    """As Haiku would have it: eval mode, statistics among the parameters."""
    conv, bn, fc = (parameters[f"net/~/{name}"] for name in ("conv", "bn", "fc"))
    bias, scale, offset = (vector.reshape(1, 1, 1, -1) for vector in (conv["b"], bn["scale"], bn["offset"]))
    x = jax.lax.conv_general_dilated(x, conv["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = (x + bias) * scale + offset
    return slope * (jax.nn.relu(x).mean((1, 2)) @ fc["w"]) + fc["b"][None]


class TorchAffine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class TorchFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 3, padding=1), "bn": TorchAffine(), "fc": nn.Linear(6, 5)})

    def forward(self, x):
        return self.net["fc"](torch.relu(self.net["bn"](self.net["conv"](x))).mean((2, 3)))


@pytest.fixture(scope="module")
def theirs():
    network = TorchNet()
    parity.randomize(None, network)
    return network


@pytest.fixture(scope="module")
def ours(theirs):
    return parity.to_flax(theirs.state_dict(), FlaxNet())


def test_linen_against_pytorch(theirs):
    variables = LinenNet().init(jax.random.key(0), INPUTS)
    filled = parity.to_flax(theirs.state_dict(), variables)
    assert not np.array_equal(filled["params"]["fc"]["kernel"], variables["params"]["fc"]["kernel"])
    report = parity.check((LinenNet(), filled), theirs, INPUTS, checks=("forward", "activations", "gradients"))
    assert report.passed, str(report)
    assert {row.mode for row in report.comparisons} == {"eval", "train"}
    assert {"conv", "bn", "fc"} <= {row.name for row in report.of("activations")}
    back = parity.to_torch((LinenNet(), filled), like=theirs.state_dict())
    assert all(np.array_equal(back[name], tensor.numpy()) for name, tensor in theirs.state_dict().items())
    report = parity.check((LinenNet(padding=0), filled), theirs, INPUTS, checks=("activations",))
    assert not report.passed
    assert report.findings[0].where == "conv"


def test_linens_dropout_is_off_whatever_its_switch():
    class Dropping(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, training=False):
            x = flax.linen.Dropout(0.3, deterministic=not training, name="drop")(x)
            x = flax.linen.BatchNorm(use_running_average=not training, momentum=0.9, epsilon=1e-5, name="bn")(x)
            return flax.linen.Dense(4, name="fc")(x)

    original = nn.Sequential()
    for name, layer in {"drop": nn.Dropout(0.3), "bn": nn.BatchNorm1d(6), "fc": nn.Linear(6, 4)}.items():
        original.add_module(name, layer)
    inputs = parity.random_inputs((5, 6))
    variables = parity.to_flax(original.state_dict(), Dropping().init(jax.random.key(0), inputs))
    report = parity.check((Dropping(), variables), original, inputs, checks=("forward", "activations"))
    assert report.passed, str(report)
    assert {row.mode for row in report.comparisons} == {"eval", "train"}


def test_linen_through_the_bridge_against_flax(ours, theirs):
    bridge = nnx.bridge.ToNNX(LinenNet(), rngs=nnx.Rngs(0)).lazy_init(INPUTS)
    parity.to_flax({k: v for k, v in theirs.state_dict().items() if "tracked" not in k}, bridge)
    report = parity.check(bridge, ours, INPUTS, checks=("forward",))
    assert report.passed, str(report)
    assert report.settings["frameworks"] == ["Linen", "Flax"]


def test_a_function_of_a_parameter_tree_against_pytorch():
    theirs = TorchFunction()
    shapes = {"conv": (3, 3, 6, 6), "fc": (6, 5)}
    tree = {f"net/~/{name}": {"w": np.zeros(shape, np.float32), "b": np.zeros(shape[-1], np.float32)}
            for name, shape in shapes.items()}  # fmt: skip
    tree["net/~/bn"] = {"scale": np.ones(6, np.float32), "offset": np.zeros(6, np.float32)}
    tree = parity.to_flax(theirs.state_dict(), tree)
    report = parity.check((function, tree), theirs, INPUTS, checks=("forward", "gradients", "optimizer"), steps=2)
    assert report.passed, str(report)
    wrong = lambda parameters, x: function(parameters, x, slope=1.001)  # noqa: E731
    assert not parity.check((wrong, tree), theirs, INPUTS, checks=("forward",)).passed


def test_flax_against_flax_in_every_check(ours):
    report = parity.check(ours, nnx.clone(ours), INPUTS, optimizer="adamw", steps=2)
    assert report.passed, str(report)
    assert all(row.floor > 0 for row in report.of("forward"))
    changed = nnx.clone(ours)
    changed.conv.padding = "VALID"
    report = parity.check(changed, ours, INPUTS, checks=("activations",))
    assert not report.passed
    assert "the reference's is (4, 6, 6, 6)" in report.findings[0].evidence


def test_pytorch_against_flax_and_against_itself(ours, theirs):
    images = np.moveaxis(INPUTS, -1, 1)
    report = parity.check(theirs, ours, images, optimizer="adam", steps=2)
    assert report.passed, str(report)
    report = parity.check(theirs, theirs, images, optimizer="adam", steps=2)
    assert report.passed, str(report)
    other = TorchNet()
    report = parity.check(other, theirs, images, checks=("forward",))
    assert "before anything is computed" in str(report.findings[0])


def test_a_reference_in_flax_has_a_floor_in_low_precision(ours):
    report = parity.check(ours, nnx.clone(ours), INPUTS, checks=("forward",), precision="float32")
    assert report.passed, str(report)
    assert all(2.0**-26 < row.floor < 1e-4 for row in report.comparisons)


def test_one_loss_serves_two_networks_of_one_framework(ours):
    loss = lambda outputs, targets: ((outputs - targets) ** 4).mean()  # noqa: E731
    assert parity.check(ours, nnx.clone(ours), INPUTS, checks=("gradients",), loss=loss).passed


def test_a_permuted_batch_is_put_back():
    back = np.argsort(order := np.array([2, 0, 1]))
    values = jnp.arange(12).reshape(6, 2)  # two rows for each example
    permuted = values.reshape(3, 2, 2)[order].reshape(6, 2)
    assert np.array_equal(in_order(permuted, back), values)
    assert in_order(jnp.ones(4), back).shape == (4,)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (LinenNet(), "LinenNet is a Linen module, which has no variables of its own"),
        ({"w": np.ones(3)}, "a parameter tree alone computes nothing"),
        (object(), "expected an NNX module, a PyTorch module, a pair"),
        (nnx.bridge.ToNNX(LinenNet()), "call its lazy_init"),
    ],
)
def test_what_is_no_network_is_refused_in_words(ours, network, words):
    with pytest.raises(parity.ParityError, match=words):
        parity.check(network, ours, INPUTS)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        pytest.param(torch.optim.swa_utils.AveragedModel, marks=pytest.mark.full),
        pytest.param(torch.compile, marks=pytest.mark.full),
    ],
)
def test_a_wrapped_network_is_unwrapped(ours, theirs, wrap, tmp_path):
    report = parity.check(ours, wrap(theirs), INPUTS, checks=("forward", "activations"), modes="eval")
    assert report.passed, str(report)
    assert "conv" in {row.name for row in report.of("activations")}
    assert report.settings["torch network"] == "TorchNet"
    path = tmp_path / "net.safetensors"
    parity.record(wrap(theirs), np.moveaxis(INPUTS, -1, 1), path, checks="forward")
    assert parity.check(ours, path).passed


def test_two_networks_in_pytorch_get_one_set_of_values():
    one, other = TorchNet(), nn.DataParallel(TorchNet())
    parity.randomize(one, other)
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.module.state_dict().items())
    with pytest.raises(parity.ParityError, match=r"two PyTorch networks differ in bias, bn\."):
        parity.randomize(nn.Linear(2, 2), other)


class Masked(nn.Module):
    """With a buffer that is saved, as of a causal mask."""

    def __init__(self, mask):
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.fc(x).masked_fill(self.mask, 0)


def test_a_constant_of_one_side_is_noted_and_kept():
    mask = np.arange(4) % 2 == 0
    theirs = Masked(torch.from_numpy(mask))

    class Ours(nnx.Module):
        def __init__(self, mask):
            self.fc, self.kept = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), tuple(map(bool, ~mask))

        def __call__(self, x):
            return self.fc(x) * jnp.array(self.kept)[None]

    ours, inputs = Ours(mask), parity.random_inputs((3, 6))
    parity.randomize(ours, theirs)
    assert torch.equal(theirs.mask, torch.from_numpy(mask))
    report = parity.check(ours, theirs, inputs, steps=1)
    assert report.passed, str(report)
    assert any("PyTorch keeps mask, which no pass changes" in warning for warning in report.warnings)
    other = Ours(~mask)
    parity.randomize(other, theirs)
    assert not parity.check(other, theirs, inputs, checks="forward").passed
    assert parity.check(theirs, ours, inputs, checks="forward").passed


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
def test_a_traced_network_is_refused_in_words(ours):
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(parity.ParityError, match="scripted or traced, and its calls cannot be recorded"):
        parity.check(ours, traced, INPUTS)
