"""What a network costs: its multiply-accumulates."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resnet_flax.models.registry import build_model, get_architecture


@cache
def multiply_accumulates(architecture: str, image_size: int | None = None) -> int:
    """The multiply-accumulates of an architecture's convolutions and linear layers for one image.

    They are counted as torchvision's and timm's published figures ("GFLOPS", "GMACs") are: a convolution's are its
    output pixels times its kernel's size, whether taps lie in the padding or not; norms, activations, additions and
    pools, fixed filters among them, count nothing.

    Args:
        image_size: height and width in pixels; None for the architecture's own.

    Raises:
        UserError: if there is no such architecture.
    """
    row = get_architecture(architecture)
    size = image_size or row.image_size
    count = 0

    def counted(kernel: int, output: tuple[int, ...]) -> jax.Array:
        nonlocal count
        count += kernel * math.prod(output[1:-1])
        return jnp.zeros(output)

    class Conv(nnx.Module):
        def __init__(
            self, inputs: int, outputs: int, kernel_size: Any, *, stride=1, padding=0, dilation=1, groups=1, **_: Any
        ):
            self.taps = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            self.window = stride, padding, dilation
            self.outputs, self.products = outputs, math.prod(self.taps) * inputs // groups * outputs

        def __call__(self, x: jax.Array) -> jax.Array:
            stride, padding, dilation = self.window
            sizes = zip(x.shape[1:-1], self.taps, strict=True)
            pixels = ((n + 2 * padding - dilation * (taps - 1) - 1) // stride + 1 for n, taps in sizes)
            return counted(self.products, (x.shape[0], *pixels, self.outputs))

    class Linear(nnx.Module):
        def __init__(self, inputs: int, outputs: int, **_: Any):
            self.inputs, self.outputs = inputs, outputs

        def __call__(self, x: jax.Array) -> jax.Array:
            return counted(self.inputs * self.outputs, (x.shape[0], self.outputs))

    class Norm(nnx.Module):
        def __init__(self, features: int, **_: Any):
            pass

        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    layers: dict[str, Any] = {"conv_layer": Conv, "linear_layer": Linear, "norm_layer": Norm}
    model = build_model(architecture, rngs=nnx.Rngs(0), **layers)
    jax.eval_shape(model.__call__, jax.ShapeDtypeStruct((1, size, size, row.in_channels), jnp.float32))
    return count
