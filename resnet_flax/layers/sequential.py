"""Layers in sequence, under torchvision's names."""

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
