"""One variable under several names: tied parameters, a layer used twice, and weights that are views of PyTorch's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity


def test_tied_parameters_are_filled_once():
    class TorchTied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    class FlaxTied(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))

    theirs = TorchTied()
    ours = parity.to_flax(theirs.state_dict(), FlaxTied())
    np.testing.assert_array_equal(ours.embed.embedding[...], theirs.embed.weight.detach().numpy())
    ours.embed.embedding.set_value(ours.embed.embedding[...] + 1)
    back = parity.to_torch(ours, like=theirs.state_dict())
    np.testing.assert_array_equal(back["head.weight"], back["embed.weight"])
    np.testing.assert_array_equal(back["head.weight"], theirs.head.weight.detach().numpy() + 1)
    apart = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    a_part = theirs.state_dict() | {"head.weight": theirs.embed.weight[:1]}
    for state in (apart, a_part):
        with pytest.raises(parity.ParityError, match=r"head\.weight"):
            parity.to_flax(state, FlaxTied())


def test_two_values_for_one_variable():
    class FlaxShared(nnx.Module):
        def __init__(self):
            self.a = self.b = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    state = {f"{name}.{kind}": np.ones(shape) for name in "ab" for kind, shape in (("weight", (2, 2)), ("bias", 2))}
    state = {name: array.astype(np.float32) for name, array in state.items()}
    parity.to_flax(state, FlaxShared())
    state["b.bias"] *= 2
    with pytest.raises(parity.ParityError, match=r"a\.bias and b\.bias are one variable"):
        parity.to_flax(state, FlaxShared())


class TorchTwice(nn.Module):
    """One layer under two names, the alphabet's second first."""

    def __init__(self):
        super().__init__()
        self.b = self.a = nn.Linear(6, 6)

    def forward(self, x):
        return self.a(torch.relu(self.b(x)))


class FlaxTwice(nnx.Module):
    def __init__(self, factor=1.0):
        self.b = self.a = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.factor = factor

    def __call__(self, x):
        return self.a(self.factor * nnx.relu(self.b(x)))


def test_a_layer_under_two_names_is_compared_at_each_call():
    for factor, failing in ((1.0, []), (1.01, ["a#2"])):
        pair = FlaxTwice(factor), TorchTwice()
        parity.randomize(*pair)
        found = parity.check(*pair, parity.random_inputs((8, 6)), checks=("activations",))
        assert [row.name for row in found.comparisons] == ["a", "a#2"]
        assert [row.name for row in found.failures] == failing


def test_weights_that_are_views_of_pytorchs():
    theirs = nn.Linear(4, 4)
    ours = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    ours.kernel, ours.bias = (nnx.Param(x.detach().numpy().T) for x in (theirs.weight, theirs.bias))
    found = parity.check(ours, theirs, parity.random_inputs((2, 4)), checks="weights")
    assert {row.note for row in found.failures} == {"shares its memory with PyTorch's tensor: copy it"}
