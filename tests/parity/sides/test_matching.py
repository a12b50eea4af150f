"""Names proposed from the order of calls, where layers are defined in another."""

import pytest

torch = pytest.importorskip("torch")

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
