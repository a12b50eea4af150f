"""The smallest network with what training has to deal with, and batches for it."""

import numpy as np
from flax import nnx

from resnet_flax.layers import BatchNorm, Conv, Linear

CLASSES = 5


class Tiny(nnx.Module):
    """Two convolutions with norms and a head: images (N, H, W, 2) -> (N, 5)."""

    def __init__(self, *, param_dtype=np.float32, axis_name=None, rngs):
        self.conv1 = Conv(2, 6, 3, stride=2, padding=1, param_dtype=param_dtype, rngs=rngs)
        self.bn1 = BatchNorm(6, param_dtype=param_dtype, axis_name=axis_name, rngs=rngs)
        self.conv2 = Conv(6, 8, 3, padding=1, use_bias=True, param_dtype=param_dtype, rngs=rngs)
        self.bn2 = BatchNorm(8, param_dtype=param_dtype, axis_name=axis_name, rngs=rngs)
        self.fc = Linear(8, CLASSES, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((1, 2)))


def randomised(network, arrays, dtype):
    """The arrays with random scales, biases and statistics: a fresh network hides faults behind ones and zeros."""
    rng = np.random.default_rng(1)
    changed = {}
    for name, array in arrays.items():
        value = np.asarray(array, dtype if array.dtype.kind == "f" else None)
        if name.endswith((".scale", ".var")):
            value = rng.uniform(0.5, 1.5, value.shape).astype(value.dtype)
        elif name.endswith((".bias", ".mean")):
            value = rng.normal(0, 0.3, value.shape).astype(value.dtype)
        changed[name] = value
    return {name: changed[name] for name in network.order}


def batches(count, size, dtype=np.float64, seed=0):
    """Random images (size, 5, 7, 2) and labels, as the training step takes them."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.normal(size=(size, 5, 7, 2)).astype(dtype),
            "label": rng.integers(0, CLASSES, size).astype(np.int32),
        }
        for _ in range(count)
    ]
