"""A map between the names of two networks, proposed and written to a file."""

from pathlib import Path
from typing import Any

import numpy as np

from parity.conversion.matching import proposed_names, write_names
from parity.sides.arguments import map_arrays
from parity.sides.base import relaid
from parity.sides.networks import as_side, unwrapped


def match_names(network: Any, original: Any, path: str | Path | None = None, *, inputs: Any = None) -> dict[str, str]:
    """Proposes {Flax path: PyTorch path} for layers whose names differ, as `names=` takes it.

    Layers of the same name and shapes belong together; then those of the same kind and shapes in the same order; and
    of what is left, those of the same shapes whose names are most alike. A proposal is complete, and verified: every
    tensor of either network has one of its shape in the other. Whether layers of equal shapes are the right ones, only
    `parity.check` can tell.

    Args:
        network: in JAX.
        original: a PyTorch module, a state_dict, or another network in JAX.
        path: a JSON file to write the map to, to be edited and given to `python -m parity check --names`.
        inputs: a batch as `network` takes it. The order is then that in which layers are called, and otherwise that
            in which they are defined, which is less often the same in two networks.

    Raises:
        ParityError: if a layer has no counterpart; the message lists them.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> class Ours(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.head = nnx.Linear(8, 4, rngs=rngs)
        >>> class Theirs(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.classifier = torch.nn.Linear(8, 4)
        >>> parity.match_names(Ours(nnx.Rngs(0)), Theirs())
        {'head': 'classifier'}
    """
    original = unwrapped(original)
    orders = None
    if inputs is not None:
        side, other = as_side(network, "float32"), as_side(original, "float32")
        inputs = map_arrays(np.asarray, inputs)
        orders = side.calls(inputs), other.calls(relaid(inputs, side, other))
    names = proposed_names(network, original, orders)
    if path is not None:
        write_names(names, Path(path))
    return names
