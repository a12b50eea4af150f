"""Why two networks part between two layers that agree, where what they compute is not a module of its own."""

from typing import Any

import numpy as np
import torch

from parity.checks.isolation import Isolated, Recorded, flax_and_torch
from parity.checks.pair import Pair
from parity.checks.tolerance import relative


def why(pair: Pair, recorded: Recorded, before: str, layer: Isolated) -> str:
    """The first hypothesis that explains how the input of `layer` differs, while `before` agrees; "" if none does."""
    return _max_pool(pair, recorded, before, layer) or _flattening(recorded, layer)


def _max_pool(pair: Pair, recorded: Recorded, before: str, layer: Isolated) -> str:
    """A max-pool that PyTorch has as a module and we as a function: which padding would give what we have?"""
    _, reference = flax_and_torch(pair)
    order = list(recorded.reference_inputs)
    start = order.index(before) if before in order else -1
    pools = {
        name: module
        for name, module in reference.module.named_modules()
        if isinstance(module, torch.nn.MaxPool2d)
        and name in order  # it may never have been called
        and start < order.index(name) < order.index(layer.path)
    }
    ours = np.moveaxis(recorded.candidate_inputs[layer.path], -1, 1)
    for name, pool in pools.items():
        x = recorded.reference_inputs[name].double()
        for words, output in _pooled(x, pool).items():
            if output.shape == ours.shape and relative(ours, output) <= layer.limit:
                return f"max-pool {words}; PyTorch's {name} pads {pool.padding} on both sides with minus infinity"
    return ""


def _pooled(x: torch.Tensor, pool: torch.nn.MaxPool2d) -> dict[str, np.ndarray]:
    """What a max-pool with another padding makes of x (N, C, H, W)."""
    window, stride = as_pair(pool.kernel_size), as_pair(pool.stride)
    same = []
    for size, w, s in zip(x.shape[2:], window, stride, strict=True):
        total = max((-(-size // s) - 1) * s + w - size, 0)
        same.append((total // 2, total - total // 2))
    both = [(p, p) for p in as_pair(pool.padding)]

    def padded(padding: list[tuple[int, int]], value: float) -> np.ndarray:
        (top, bottom), (left, right) = padding
        x_padded = torch.nn.functional.pad(x, (left, right, top, bottom), value=value)
        return torch.nn.functional.max_pool2d(x_padded, window, stride).cpu().numpy()

    return {
        "has padding SAME": padded(same, -torch.inf),
        "pads with zeros": padded(both, 0.0),
        "has padding SAME, with zeros": padded(same, 0.0),
        "does not pad": padded([(0, 0), (0, 0)], 0.0),
    }


def as_pair(value: Any) -> tuple[int, ...]:
    """(2, 2) for 2."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _flattening(recorded: Recorded, layer: Isolated) -> str:
    """(N, H, W, C) flattened as it lies, where PyTorch has flattened (N, C, H, W)."""
    ours, theirs = recorded.candidate_inputs[layer.path], recorded.reference_inputs[layer.path].double().cpu().numpy()
    if ours.ndim != 2 or ours.shape != theirs.shape:
        return ""
    batch, features = ours.shape
    for channels in range(2, features // 2 + 1):
        if features % channels == 0:
            moved = theirs.reshape(batch, channels, -1).swapaxes(1, 2).reshape(ours.shape)
            if relative(ours, moved) <= layer.limit:
                return (
                    f"{layer.path} takes features flattened with the {channels} channels last, PyTorch's with them "
                    "first: transpose x to (N, C, H, W) before the reshape"
                )
    return ""
