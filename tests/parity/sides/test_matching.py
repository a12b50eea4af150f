"""Names proposed from the order of calls, where layers are defined in another."""

import flax.linen
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity


class Ours(nnx.Module):
    """Defined in the opposite order."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.head, self.second, self.first = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.second(nnx.relu(self.first(x))))))


def test_layers_of_equal_shapes_are_matched_by_their_calls():
    theirs = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    ours, inputs = Ours(), parity.random_inputs((2, 4))
    names = parity.match_names(ours, theirs, inputs=inputs)
    assert names == {"first": "0", "second": "2", "head": "4"}
    assert parity.match_names(ours, theirs) != names
    parity.randomize(ours, theirs, names=names)
    assert parity.check(ours, theirs, inputs, names=names, checks=("forward",)).passed


class Linen(flax.linen.Module):
    """Layers that Flax names, and whose variables are sorted as text: layers_10 before layers_2."""

    @flax.linen.compact
    def __call__(self, x, train=False):
        for index in range(11):
            x = flax.linen.Conv(4, (1, 1), use_bias=False, name=f"layers_{index}")(x)
            x = flax.linen.BatchNorm(use_running_average=not train, epsilon=1e-5, name=f"a_norm_{index}")(x)
        return x


def test_a_tree_of_variables_is_matched_in_the_order_of_the_numbers_in_its_names():
    layers = [layer for _ in range(11) for layer in (nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))]
    theirs, inputs = nn.Sequential(*layers), parity.random_inputs((2, 3, 5, 4))
    variables = jax.tree.map(np.asarray, Linen().init(jax.random.key(0), inputs))
    names = parity.match_names((Linen(), variables), theirs)
    assert names["layers_2"] == "4"
    assert names["a_norm_10"] == "21"
    assert names == parity.match_names((Linen(), variables), theirs, inputs=inputs)


class Scaled(flax.linen.Module):
    """A bare parameter that other networks call gamma, beside a layer."""

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Dense(4, name="stage0_pwconv")(x)
        return x * self.param("stage0_gamma", flax.linen.initializers.ones, (1, 4))


class TorchScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pwconv, self.layer_scale = nn.Linear(4, 4), nn.Parameter(torch.rand(1, 4))

    def forward(self, x):
        return self.pwconv(x) * self.layer_scale


def test_single_tensors_are_matched_by_their_shapes():
    theirs, inputs = TorchScaled(), parity.random_inputs((3, 4))
    variables = Scaled().init(jax.random.key(0), inputs)
    names = parity.match_names((Scaled(), variables), theirs)
    assert names == {"stage0_pwconv": "pwconv", "stage0_gamma": "layer_scale"}
    variables = parity.to_flax(theirs.state_dict(), variables, names=names)
    assert parity.check((Scaled(), variables), theirs, inputs, names=names, checks=("forward", "gradients")).passed


def test_a_tensor_without_a_counterpart_is_named():
    theirs = TorchScaled()
    theirs.register_parameter("other", nn.Parameter(torch.rand(1, 5)))
    variables = Scaled().init(jax.random.key(0), parity.random_inputs((3, 4)))
    with pytest.raises(parity.ParityError, match=r"in the original only \(1\):\n  other"):
        parity.match_names((Scaled(), variables), theirs)
