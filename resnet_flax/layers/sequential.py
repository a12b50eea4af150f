"""Layers in sequence, under torchvision's names."""

from collections.abc import Callable

import jax
from flax import nnx


class Sequential(nnx.List):
    """A list of layers, called one after another.

    Its children's paths are `layer1.0`, `layer1.1`, as in `torch.nn.Sequential`; `nnx.Sequential` inserts `layers`.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self:
            x = layer(x)
        return x


class Apply(nnx.Module):
    """A function without parameters as a module, so that it has a place and a name as in PyTorch."""

    function: Callable[[jax.Array], jax.Array] = staticmethod(nnx.relu)

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        if function is not nnx.relu:  # which as an attribute would not survive `copy.deepcopy` as the same object
            self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)
