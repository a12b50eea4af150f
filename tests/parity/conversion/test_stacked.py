"""Layers stacked by `nnx.vmap` and run by `nnx.scan` against PyTorch's list of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity

DEPTH = 3
FEATURES = parity.random_inputs((2, 6))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.fc = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.fc(self.norm(x)))


class Stack(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        keys = nnx.Rngs(params=jax.random.split(jax.random.key(0), DEPTH))
        self.blocks = nnx.vmap(lambda rngs: Block(rngs))(keys)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(
            nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        )


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.fc(self.norm(x)).tanh()


class TorchStack(nn.Module):
    def __init__(self, order=range(DEPTH)):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(TorchBlock() for _ in range(DEPTH)), nn.Linear(6, 2)
        self.order = order

    def forward(self, x):
        for index in self.order:
            x = self.blocks[index](x)
        return self.head(x)


def test_a_stack_goes_there_and_back():
    theirs = TorchStack()
    parity.randomize(None, theirs)
    state_dict = theirs.state_dict()
    for model in (Stack(), nnx.eval_shape(Stack)):
        ours = parity.to_flax(state_dict, model)
        assert ours.blocks.fc.kernel.shape == (DEPTH, 6, 6)
        assert np.array_equal(ours.blocks.fc.kernel[1], state_dict["blocks.1.fc.weight"].T)
        back = parity.to_torch(ours, like=state_dict)
        assert list(back) == list(state_dict)
        assert all(np.array_equal(back[name], tensor) for name, tensor in state_dict.items())


def test_a_stack_is_compared_layer_by_layer():
    ours, theirs = Stack(), TorchStack()
    parity.randomize(ours, theirs)
    report = parity.check(ours, theirs, FEATURES, steps=2)
    assert report.passed, str(report)
    assert {"blocks.0.norm.weight", "blocks.2.fc.bias"} <= {row.name for row in report.of("gradients")}
    theirs.order = (1, 0, 2)
    report = parity.check(ours, theirs, FEATURES, checks=("forward", "activations"))
    assert not report.passed
    assert "raised" not in str(report)


def test_a_stack_of_another_length_or_name():
    ours = Stack()
    with pytest.raises(parity.ParityError, match=r"blocks\.2\.norm\.weight"):
        parity.to_flax({k: v for k, v in TorchStack().state_dict().items() if "blocks.2" not in k}, ours)
    state_dict = {k.replace("blocks", "layers"): v for k, v in TorchStack().state_dict().items()}
    parity.to_flax(state_dict, ours, names={"blocks": "layers"})
    assert np.array_equal(ours.blocks.norm.bias[2], state_dict["layers.2.norm.bias"])
