"""Weights for a network with another head or another number of input channels."""

import math
from dataclasses import replace

import numpy as np
from flax import nnx

from parity.conversion.convert import to_torch
from resnet_flax.layers import Linear
from resnet_flax.weights.files import Weights


def adapted(
    weights: Weights, num_classes: int | None, in_channels: int | None, rngs: nnx.Rngs
) -> tuple[Weights, dict[str, str]]:
    """The weights for another head or stem, and what was changed, {module: one sentence}.

    Args:
        num_classes, in_channels: None keeps the weights' own; 0 classes drops the head.
        rngs: for a new head.
    """
    identity, state_dict, changes = weights.identity, dict(weights.state_dict), {}
    if num_classes is not None and num_classes != identity.num_classes:
        state_dict = {name: array for name, array in state_dict.items() if not name.startswith("fc.")}
        if num_classes:
            features = next(
                array.shape[0]
                for name, array in reversed(state_dict.items())
                if name.startswith("layer") and array.ndim == 1
            )
            head = to_torch(nnx.List([Linear(features, num_classes, rngs=rngs)]))
            state_dict |= {name.replace("0.", "fc."): array for name, array in head.items()}
        changes["fc"] = (
            f"the head is new: {num_classes} classes instead of {identity.num_classes}, not trained yet"
            if num_classes
            else "the head was dropped"
        )
    if in_channels is not None and in_channels != identity.in_channels:
        first = "conv1.weight" if "conv1.weight" in state_dict else "conv1.0.weight"
        state_dict[first] = adapt_stem(state_dict[first], in_channels)
        changes["conv1"] = f"the first convolution was adapted from {identity.in_channels} to {in_channels} channels"
    sizes = {
        "num_classes": identity.num_classes if num_classes is None else num_classes,
        "in_channels": identity.in_channels if in_channels is None else in_channels,
    }
    return replace(weights, state_dict=state_dict, identity=replace(identity, **sizes)), changes


def adapt_stem(weight: np.ndarray, in_channels: int) -> np.ndarray:
    """The first convolution's weight (O, I, h, w) for another number of input channels, as timm adapts it.

    For one channel the old ones are summed, so that a grey image gives the output that its copy in every channel gave.
    For more they are repeated in turn and scaled by I / in_channels, which keeps the magnitude of the output.
    """
    if in_channels == 1:
        return weight.sum(1, keepdims=True)
    old = weight.shape[1]
    repeated = np.tile(weight, (1, math.ceil(in_channels / old), 1, 1))[:, :in_channels]
    return (repeated * (old / in_channels)).astype(weight.dtype)
