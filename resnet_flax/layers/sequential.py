"""Layers one after another, under torchvision's names."""

import jax
from flax import nnx


class Sequential(nnx.List):
    """A list of layers that can be called.

    Its children's paths are `layer1.0`, `layer1.1`, as `torch.nn.Sequential` has them; `nnx.Sequential` puts a
    `layers` in between.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self:
            x = layer(x)
        return x
