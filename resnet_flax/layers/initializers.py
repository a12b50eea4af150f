"""PyTorch's and torchvision's parameter initialisations, for kernels in HWIO or (in, out) layout."""

import math

import jax
from jax.nn.initializers import Initializer, glorot_uniform, variance_scaling

kaiming_normal: Initializer = variance_scaling(2.0, "fan_out", "normal")
"""Of torchvision's ResNet convolutions: `kaiming_normal_(mode="fan_out", nonlinearity="relu")`, not truncated."""

torch_default: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")
"""Of `nn.Conv2d` and `nn.Linear`: `kaiming_uniform_(a=sqrt(5))`, that is U(-b, b) with b = 1 / sqrt(fan_in)."""

xavier_uniform: Initializer = glorot_uniform()
"""`torch.nn.init.xavier_uniform_`."""


def torch_default_bias(fan_in: int) -> Initializer:
    """Of biases in `nn.Conv2d` and `nn.Linear`: U(-b, b) with b = 1 / sqrt(fan_in), where fan_in is the kernel's."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=float, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init
