"""PyTorch's recurrent layers, which keep two biases, with one where the other side has one: only the sum counts."""

import copy
from collections.abc import Collection

import torch

from parity.conversion.convert import as_numpy
from parity.conversion.recurrent import other_bias, summed


def single_biases(network: torch.nn.Module) -> set[str]:
    """The biases that stand for both in layers where one can, as the cells of Flax have them."""
    kept: set[str] = set()
    for path, module in network.named_modules():
        if not isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
            continue
        is_lstm = isinstance(module, torch.nn.LSTM | torch.nn.LSTMCell)
        for name, _ in module.named_parameters(recurse=False):
            other = getattr(module, other_bias(name)) if name.startswith("bias_hh" if is_lstm else "bias_ih") else None
            if other is not None and not other[_rows(module)[1]].any():
                kept.add(f"{path}.{name}".lstrip("."))
    return kept


def _rows(module: torch.nn.Module) -> tuple[slice, slice]:
    """The rows of the other bias that are added to the one, and those that are not and have to be zero."""
    if isinstance(module, torch.nn.GRU | torch.nn.GRUCell):
        return slice(2 * module.hidden_size), slice(2 * module.hidden_size, None)
    return slice(None), slice(0)


def with_one_bias(network: torch.nn.Module, names: Collection[str]) -> tuple[torch.nn.Module, list[str]]:
    """A copy in which one bias of each recurrent layer is the sum of both, and the other a constant zero.

    The sum is rounded to the parameters' own type, as `parity.to_flax` rounds it.

    Args:
        names: of the parameters on the other side: a layer is changed if one of its two biases is among them and the
            other is not.

    Returns:
        the network itself and no names, if nothing has to be changed; else the copy and the names of the zeros.
    """
    found: list[tuple[str, str, str]] = []
    for path, module in network.named_modules():
        if not isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
            continue
        for name in [name for name, _ in module.named_parameters(recurse=False) if name.startswith("bias_")]:
            full = f"{path}.{name}" if path else name
            if full in names and other_bias(full) not in names:
                found.append((path, name, full))
    if not found:
        return network, []
    network = copy.deepcopy(network)
    for path, name, full in found:
        module, zero = network.get_submodule(path), other_bias(name)
        bias, other = getattr(module, name), getattr(module, zero)
        total = summed(as_numpy(bias), as_numpy(other), _rows(module)[0], other_bias(full))
        bias.data.copy_(torch.from_numpy(total.astype("float64")))
        constant = torch.zeros_like(other)
        delattr(module, zero)
        module.register_buffer(zero, constant, persistent=False)
        setattr(module, zero, constant)  # which a whole layer takes into its list of weights
    return network, [other_bias(full) for _, _, full in found]
