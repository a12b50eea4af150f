"""Weights, statistics and inputs that hide nothing."""

from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from parity.conversion.convert import to_flax, to_torch
from parity.conversion.naming import leaves
from parity.errors import ParityError
from parity.sides.networks import is_torch, kind, unwrapped

if TYPE_CHECKING:
    import torch


def randomize(
    network: "nnx.Module | torch.nn.Module | None",
    reference: "torch.nn.Module | nnx.Module",
    *,
    seed: int = 0,
    names: Mapping[str, str] | None = None,
) -> None:
    """Fills a network, if given one, and the reference with the same values: every part shows in the output.

    A fresh network hides faults: gammas of 1 and statistics of 0 and 1 leave a BatchNorm without effect, a last gamma
    of 0 a whole branch. Here weights have the size that keeps a signal's (He et al. 2015) and a mean that is not zero,
    gammas lie in 0.4..0.8 or 1.2..1.6, some negative, and statistics around, but not at, the ones of a unit signal.
    PyTorch's buffers that are no statistics, such as masks, stay as they are.

    Args:
        network: in Flax or in PyTorch.
        reference: in PyTorch; in Flax if `network` is not in PyTorch.
        seed: of the values.
        names: {Flax path: PyTorch path} of `network`, as in `to_flax`.

    Raises:
        ParityError: if the two do not correspond, or are given the other way round.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> parity.randomize(ours, theirs)
        >>> parity.check(ours, theirs, parity.random_inputs((3, 8)), checks=("forward",)).passed
        True
    """
    network, reference = unwrapped(network), unwrapped(reference)
    _require_pair(network, reference)
    rng = np.random.default_rng(seed)
    if is_torch(reference):
        _fill_torch(network, reference, rng, names)
        return
    arrays = to_torch(reference)
    gammas = {name for name, array in arrays.items() if name.endswith(".weight") and array.ndim == 1}
    values = {
        name: _drawn(name, array.shape, array.dtype.kind in "iub", name in gammas, rng).astype(array.dtype)
        for name, array in arrays.items()
    }
    if network is not None:
        to_flax(values, network, names=names)
    to_flax(values, reference)


def _drawn(name: str, shape: tuple[int, ...], is_integer: bool, is_gamma: bool, rng: np.random.Generator) -> np.ndarray:
    """Values of a parameter or statistic (PyTorch's name and layout)."""
    if is_integer:
        return rng.integers(1, 100, shape)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2.0, shape)
    if is_gamma:
        value = rng.uniform(0.4, 0.8, shape) + 0.8 * (rng.random(shape) < 0.2)
        return value * np.where(rng.random(shape) < 0.2, -1, 1)
    if len(shape) >= 2:
        fan_in = np.prod(shape[1:])
        return rng.normal(0.1 / np.sqrt(fan_in), np.sqrt(2 / fan_in), shape)
    return rng.normal(0.05, 0.2, shape)  # biases, running means


def _fill_torch(
    network: Any,
    reference: "torch.nn.Module",
    rng: np.random.Generator,
    names: Mapping[str, str] | None,
) -> None:
    import torch

    from parity.sides.torch import constants
    from parity.sides.torch_private import NormWithStatistics

    norms = NormWithStatistics | torch.nn.GroupNorm | torch.nn.LayerNorm
    gammas = {f"{path}.weight".lstrip(".") for path, part in reference.named_modules() if isinstance(part, norms)}
    values: dict[str, Any] = {}
    kept = constants(reference)
    for name, tensor in reference.state_dict().items():
        if name in kept:
            values[name] = tensor.clone()
            continue
        value = _drawn(name, tuple(tensor.shape), not tensor.is_floating_point(), name in gammas, rng)
        values[name] = torch.tensor(value, dtype=tensor.dtype)
    for path, part in reference.named_modules():
        if isinstance(part, torch.nn.RNNBase | torch.nn.RNNCellBase):
            _make_summable(part, path, values, keep_all=network is None or is_torch(network))
    reference.load_state_dict(values)
    if is_torch(network):
        network.load_state_dict(reference.state_dict())
    elif network is not None:
        known = {leaf.torch_name for leaf in leaves(network, names)}
        state = {name: tensor for name, tensor in reference.state_dict().items() if name in known or name not in kept}
        to_flax(state, network, names=names)


def _make_summable(layer: "torch.nn.Module", path: str, values: "dict[str, torch.Tensor]", *, keep_all: bool) -> None:
    """Rounds a recurrent layer's two biases so that their sum, the one bias that Flax has, is exact.

    Unless all is kept, the part of a GRU's that nnx.GRUCell has no place for becomes zero.
    """
    import torch

    for name, parameter in layer.named_parameters(recurse=False):
        if not name.startswith("bias"):
            continue
        value = values[f"{path}.{name}" if path else name]
        value.copy_((value.double() * 2**16).round() / 2**16)
        if isinstance(layer, torch.nn.GRU | torch.nn.GRUCell) and name.startswith("bias_hh") and not keep_all:
            value[2 * len(parameter) // 3 :] = 0


def _require_pair(network: Any, reference: Any) -> None:
    if is_torch(network) and is_torch(reference):
        shapes = [{name: tuple(value.shape) for name, value in part.state_dict().items()}
                  for part in (network, reference)]  # fmt: skip
        if different := sorted(dict(shapes[0].items() ^ shapes[1].items())):
            raise ParityError(
                f"the two PyTorch networks differ in {', '.join(different[:5])}: of two of other names or shapes each "
                "is filled by itself"
            )
    elif not isinstance(network, nnx.Module | None) or not (is_torch(reference) or isinstance(reference, nnx.Module)):
        given = " and ".join(map(kind, (network, reference)))
        raise ParityError(
            f"expected a Flax network and then a PyTorch or another Flax one, found {given}; parameters that no "
            "module holds are filled by parity.to_flax(torch_model.state_dict(), parameters), after "
            "parity.randomize(None, torch_model)"
        )


def random_inputs(shape: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """float32 inputs (N, ..., C) about unit normal, with a slope along every axis, so that none can be mistaken.

    Args:
        shape: the batch first, the channels last.
        seed: of the noise.

    Raises:
        ParityError: if `shape` is not a shape.

    Examples:
        >>> import parity
        >>> parity.random_inputs((2, 16, 16, 3)).shape
        (2, 16, 16, 3)
    """
    if not isinstance(shape, tuple | list) or not all(isinstance(size, Integral) and size >= 0 for size in shape):
        raise ParityError(f"expected a shape such as (4, 32, 32, 3), found {shape!r}")
    slopes = np.zeros(shape)
    for axis, size in enumerate(shape[1:], start=1):
        slopes += np.linspace(-0.5, 0.25 * axis, size).reshape(-1, *[1] * (len(shape) - axis - 1))
    return (np.random.default_rng(seed).normal(size=shape) + slopes).astype(np.float32)
