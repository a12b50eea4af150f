"""Networks that are not image classifiers: verdicts that stay right, and no traceback for what a network may do."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity
from resnet_flax.layers import BatchNorm

SMALLEST = torch.finfo(torch.float32).min


class TorchDense(nn.Module):
    """A linear layer and whatever comes behind it."""

    def __init__(self, behind=lambda y: y):
        super().__init__()
        self.fc, self.behind = nn.Linear(6, 6), behind

    def forward(self, x):
        return self.behind(self.fc(x))


class FlaxDense(nnx.Module):
    def __init__(self, behind=lambda y: y):
        self.fc, self.behind = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), behind

    def __call__(self, x):
        return self.behind(self.fc(x))


def dense(ours=lambda y: y, theirs=lambda y: y):
    pair = FlaxDense(ours), TorchDense(theirs)
    parity.randomize(*pair)
    return pair


def report(pair, shape=(8, 6), **options):
    return parity.check(*pair, parity.random_inputs(shape), **options)


def torch_mask(y):
    return y.masked_fill(torch.arange(6) % 2 == 0, SMALLEST)


def flax_mask(y, factor=1.0):
    return jnp.where(jnp.arange(6) % 2 == 0, SMALLEST, factor * y)


@dataclass
class Case:
    """Two ends of a network: PyTorch's, ours, and ours with a fault."""

    theirs: Any
    right: Any
    wrong: Any


CASES = {
    "similarities within the batch": Case(lambda y: y @ y.T, lambda y: y @ y.T, lambda y: 1.5 * (y @ y.T) + 1),
    "sums over the first axis": Case(lambda y: y.cumsum(0), lambda y: y.cumsum(0), lambda y: y),
    "an output without a batch": Case(
        lambda y: (y, torch.arange(16.0).view(8, 2)),
        lambda y: (y, jnp.arange(16.0).reshape(8, 2)),
        lambda y: (y, 1.5 * jnp.arange(16.0).reshape(8, 2)),
    ),
    "a mask of the smallest number": Case(torch_mask, flax_mask, lambda y: flax_mask(y, 0.0)),
    "a mask with holes": Case(torch_mask, flax_mask, lambda y: jnp.where(jnp.arange(6) % 4 == 0, SMALLEST, y)),
    "a mask of -1e9": Case(
        lambda y: y.masked_fill(y > 0, -1e9),
        lambda y: jnp.where(y > 0, -1e9, y),
        lambda y: jnp.where(y > 0, -1e9, y * (1 + 1e-8)),
    ),
    "an output of another shape": Case(lambda y: y, lambda y: y, lambda y: y[:, :5]),
}


@pytest.mark.parametrize("name", CASES)
def test_faults_are_seen_where_pytorch_disagrees_with_itself_or_masks(name):
    case = CASES[name]
    assert report(dense(case.right, case.theirs), checks=("forward",)).passed
    assert not report(dense(case.wrong, case.theirs), checks=("forward",)).passed


def test_minus_infinity_on_both_sides_is_agreement():
    def torch_attention(y):
        return torch.softmax(y.masked_fill(torch.eye(8, 6).bool(), -torch.inf), -1)

    def flax_attention(y):
        return nnx.softmax(jnp.where(jnp.eye(8, 6, dtype=bool), -jnp.inf, y))

    assert report(dense(flax_attention, torch_attention), checks=("forward", "gradients")).passed


def test_dropout_layers_are_off_in_either_mode():
    class TorchDrop(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop, self.fc = nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.drop(self.norm(x)))

    class FlaxDrop(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.drop = BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.fc = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.fc(self.drop(self.norm(x)))

    pair = FlaxDrop(nnx.Rngs(0)), TorchDrop()
    parity.randomize(*pair)
    found = report(pair, checks=("forward", "gradients"))
    assert found.passed
    assert {row.mode for row in found.comparisons} == {"eval", "train"}


def test_dropout_as_a_function_is_told_and_not_excused():
    found = report(
        dense(lambda y: y, lambda y: torch.dropout(y, 0.5, train=True)), checks=("forward",), precision="float32"
    )
    assert not found.passed
    assert any("PyTorch does not agree with itself in output" in note for note in found.notes)


def test_a_network_that_runs_contiguous_only_is_compared_all_the_same():
    class TorchView(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).view(len(x), -1))

    class FlaxView(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
            self.fc = nnx.Linear(36, 5, rngs=rngs)

        def __call__(self, x):
            return self.fc(nnx.relu(self.conv(x)).transpose(0, 3, 1, 2).reshape(len(x), -1))

    pair = FlaxView(nnx.Rngs(0)), TorchView()
    parity.randomize(*pair)
    found = report(pair, (2, 5, 5, 3))
    assert found.passed
    assert sum("leaves out arrangements in which its network does not run: view size" in x for x in found.notes) == 1


class TorchScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.fc(x) * self.scale


class FlaxScaled(nnx.Module):
    def __init__(self, kind):
        self.fc, self.scale = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), kind(jnp.ones(6))

    def __call__(self, x):
        return self.fc(x) * self.scale[...][None]


def test_a_parameter_that_only_flax_trains():
    class TorchFixed(TorchScaled):
        def __init__(self):
            super().__init__()
            del self.scale
            self.register_buffer("scale", torch.ones(6))

    pair = FlaxScaled(nnx.Param), TorchFixed()
    parity.randomize(*pair)
    for check in ("gradients", "optimizer", "trajectory"):
        found = report(pair, checks=(check,))
        assert not found.passed
        assert "scale is an nnx.Param in Flax, but not a parameter in PyTorch" in str(found)


def test_a_parameter_that_only_one_side_has():
    for pair, where in (((FlaxScaled(nnx.Param), TorchDense()), "Flax"), ((FlaxDense(), TorchScaled()), "PyTorch")):
        with pytest.raises(parity.ParityError, match=rf"in the {where} network only \(1\):\n  scale"):
            report(pair)


def test_a_parameter_that_only_pytorch_trains():
    for kind, passes in ((nnx.Param, True), (nnx.BatchStat, False)):
        pair = FlaxScaled(kind), TorchScaled()
        parity.randomize(*pair)
        for check in ("gradients", "optimizer", "trajectory"):
            found = report(pair, checks=(check,))
            assert found.passed == passes
            assert passes or "scale is a parameter in PyTorch, but not an nnx.Param in Flax" in str(found)


def test_frozen_parameters_are_left_out_aloud():
    ours, theirs = dense()
    theirs.fc.bias.requires_grad_(False)
    found = report((ours, theirs), checks=("gradients",))
    assert found.passed
    assert "frozen in PyTorch, so their gradients were not compared: fc.bias" in found.notes


def test_momentum_on_one_side_only():
    without = parity.Optimizer(
        momentum=0.0, weight_decay=0.0, transform=optax.chain(optax.trace(0.9), optax.scale(-1.0))
    )
    assert not report(dense(), checks=("optimizer",), optimizer=without).passed


def test_a_submodule_of_two_inputs_that_differs():
    class TorchSum(nn.Module):
        def forward(self, a, b):
            return a + b

    class FlaxSum(nnx.Module):
        def __call__(self, a, b):
            return a + 1.01 * b

    class TorchTwo(TorchDense):
        def __init__(self):
            super().__init__()
            self.add = TorchSum()

        def forward(self, x):
            return self.add(self.fc(x), x)

    class FlaxTwo(FlaxDense):
        def __init__(self):
            super().__init__()
            self.add = FlaxSum()

        def __call__(self, x):
            return self.add(self.fc(x), x)

    pair = FlaxTwo(), TorchTwo()
    parity.randomize(*pair)
    found = report(pair, checks=("activations",))
    assert [row.name for row in found.failures] == ["add"]
    assert found.findings[0].where == "add"
    assert report(pair, checks=("layers",)).passed  # the one of a single input


def test_one_value_per_channel_is_one_sided_in_every_check():
    ours = nnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
    theirs = nn.BatchNorm1d(6)
    parity.randomize(ours, theirs)
    for check in ("forward", "gradients", "batch_stats", "optimizer"):
        found = report((ours, theirs), (1, 6), checks=(check,))
        assert "one value per channel in train mode" in found.findings[0].cause


def test_a_cause_that_cannot_be_looked_for_costs_no_verdict(monkeypatch):
    def fail(pair, report):
        raise KeyError("cause")

    monkeypatch.setattr("parity.diagnosis.diagnose.diagnose", fail)
    found = report(dense(lambda y: y + 1), checks=("forward",))
    assert not found.passed
    assert "looking for it raised KeyError" in str(found)


def test_gradients_inside_no_grad():
    with torch.no_grad():
        assert report(dense(), checks=("gradients",)).passed


def test_trajectories_of_several_outputs_and_of_no_loss():
    both = dense(lambda y: {"output": y, "twice": 2 * y}, lambda y: {"output": y, "twice": 2 * y})
    assert report(both, checks=("forward", "gradients", "trajectory"), steps=2).passed
    nothing = (lambda out, wanted: (out * 0).sum(), lambda out, wanted: (out * 0).sum())
    assert report(dense(), checks=("trajectory",), loss=nothing, steps=2).passed


@pytest.mark.parametrize("channels", [1, 4])
def test_sequences_with_their_channels_last_and_second(channels):
    class TorchConv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, channels, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    class FlaxConv(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(3, channels, (3,), padding=1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.conv(x)

    pair = FlaxConv(), TorchConv()
    parity.randomize(*pair)
    inputs = parity.random_inputs((2, 8, 3))
    checks = ("forward", "gradients", "trajectory")
    found = parity.check(*pair, inputs, torch_inputs=inputs.transpose(0, 2, 1), checks=checks, steps=2)
    assert found.passed


def test_token_ids_for_an_embedding_of_ones_own():
    class TorchTable(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, 3))

        def forward(self, tokens):
            return self.table[tokens]

    class FlaxTable(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.zeros((7, 3)))

        def __call__(self, tokens):
            return self.table[tokens]

    pair = FlaxTable(), TorchTable()
    parity.randomize(*pair)
    assert parity.check(*pair, np.arange(6).reshape(2, 3)).passed


@pytest.mark.parametrize(
    ("pair", "shape", "message"),
    [
        (dense, (4, 0, 6), "the inputs are empty"),
        (lambda: dense(lambda y: y[:, :0], lambda y: y[:, :0]), (4, 6), "the outputs are empty"),
    ],
)
def test_nothing_to_compare_is_no_agreement(pair, shape, message):
    with pytest.raises(parity.ParityError, match=message):
        report(pair(), shape, checks=("forward",))


def test_flax_norms_beside_ours_need_no_counter():
    theirs = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    right = {"momentum": 0.9, "epsilon": 1e-5, "rngs": nnx.Rngs(0)}
    ours = nnx.Sequential(BatchNorm(6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, **right))
    parity.randomize(ours, theirs)
    assert report((ours, theirs), checks=("forward", "gradients")).passed
    counted = parity.to_torch(ours, like=theirs.state_dict())
    assert counted.keys() == theirs.state_dict().keys()
    del counted["0.num_batches_tracked"]  # which the first does count
    with pytest.raises(parity.ParityError, match=r"0\.num_batches_tracked"):
        parity.to_flax(counted, ours)


def test_an_error_in_a_network_says_where_and_all_of_it():
    def broken(y):
        raise TypeError("a long story of " + "many " * 40 + "words")

    found = report(dense(broken), targets=np.zeros((8, 6)), checks=("forward",))
    words = " ".join(str(found).split())
    assert "Flax raises TypeError at test_odd_models.py:" in words
    assert "many words; PyTorch gives a result" in words


@pytest.mark.parametrize(("precision", "factor"), [("float64", 1 + 1e-8), ("float32", 1 + 1e-4), ("bfloat16", 1.05)])
def test_a_small_factor_is_seen_in_each_precision(precision, factor):
    pair = dense(lambda y: y * factor)
    assert not report(pair, checks=("forward",), precision=precision).passed
    assert report(pair, checks=("activations",), precision=precision).passed  # of the layer before it


def test_the_noise_of_a_trajectory_never_shrinks():
    found = report(dense(), checks=("trajectory",), steps=12)
    floors = [row.floor for row in found.comparisons]
    assert floors == sorted(floors)
    assert floors[-1] > 0


def test_no_submodule_in_common_is_no_agreement():
    class TorchBare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.weight

    class FlaxBare(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(6))

        def __call__(self, x):
            return x * self.weight[...][None]

    found = report((FlaxBare(), TorchBare()), checks=("activations",))
    assert not found.passed
    assert "nothing was compared" in found.notes


@pytest.mark.parametrize(
    ("ours", "theirs", "note"),
    [
        (lambda y: y[:, :1], lambda y: y[:, 0], "shape (8, 1), PyTorch's is (8,)"),
        (lambda y: y.reshape(6, 8), lambda y: y, "shape (6, 8), PyTorch's is (8, 6)"),
    ],
)
def test_as_many_values_in_another_shape_do_not_agree(ours, theirs, note):
    found = report(dense(ours, theirs), checks=("forward",))
    assert not found.passed
    assert note in str(found)


def test_what_keeps_a_graph_cannot_be_copied():
    class Keeping(TorchDense):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    theirs = Keeping()
    theirs(torch.ones(2, 6))
    with pytest.raises(parity.ParityError, match="cannot be copied .*: detach the tensors it stores"):
        report((FlaxDense(), theirs))
