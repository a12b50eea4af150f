"""The Flax side: what it compiles."""

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="compares with PyTorch")

import parity
from parity.sides.base import Loss
from parity.sides.flax import FlaxSide
from tests.compilation import assert_compiles_once


def squares(outputs, targets):
    return ((outputs - targets) ** 2).sum()


@pytest.mark.parametrize("loss", [None, Loss(squares, squares)], ids=["forward", "gradients"])
def test_runs_on_the_same_shapes_compile_once(loss):
    inputs = parity.random_inputs((2, 3))
    targets = None if loss is None else np.ones((2, 4), np.float32)
    with jax.enable_x64(True):
        side = FlaxSide(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), "float64")
        assert_compiles_once(lambda: side.run(inputs, targets, loss, train=True))
