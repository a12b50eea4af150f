"""What is read from Flax's modules is still there to be read."""

import jax.numpy as jnp
from flax import nnx

from parity.conversion.modules import children, patched_calls, variables


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.size = 3
        self.second = nnx.Linear(3, 3, rngs=rngs)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(3))
        self.count = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        return self.second(x) + self.bias[...]


def test_attributes_are_children_and_variables_in_order_of_definition():
    layer = Layer(nnx.Rngs(0))
    assert list(children(layer)) == ["second", "first"]
    assert list(variables(layer)) == ["bias", "count"]
    assert list(variables(layer.second)) == ["kernel", "bias"]
    assert not variables(layer.first.rngs)  # a random stream's key and count are no weights


def test_calls_are_patched_and_put_back():
    class Own(nnx.Linear):
        pass

    layer, own = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), Own(3, 2, rngs=nnx.Rngs(0))
    before, called = vars(nnx.Linear)["__call__"], []

    def wrap(call):
        return lambda module, x: (called.append(type(module).__name__), call(module, x))[1]

    with patched_calls([layer, own], wrap):
        layer(jnp.ones((1, 3)))
        own(jnp.ones((1, 3)))
    assert called[0] == "Linear"
    assert "Own" in called
    assert vars(nnx.Linear)["__call__"] is before
    assert "__call__" not in vars(Own)
