"""A linear layer with PyTorch's initialisation."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from resnet_flax.layers.initializers import torch_default, torch_default_bias


class Linear(nnx.Linear):
    """`nnx.Linear` initialised like `torch.nn.Linear`: weights and biases from U(-b, b), b = 1 / sqrt(in_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer = torch_default,
        bias_init: Initializer | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            out_features,
            kernel_init=kernel_init,
            bias_init=bias_init or torch_default_bias(in_features),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
