"""PyTorch's recurrent layers, which keep two biases, with one where the other side has one: only the sum counts."""

import copy
from collections.abc import Collection

import torch

from parity.conversion.convert import as_numpy
from parity.conversion.recurrent import other_bias, summed


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
        is_gru = isinstance(module, torch.nn.GRU | torch.nn.GRUCell)
        rows = slice(2 * module.hidden_size) if is_gru else slice(None)
        bias, other = getattr(module, name), getattr(module, zero)
        total = summed(as_numpy(bias), as_numpy(other), rows, other_bias(full))
        bias.data.copy_(torch.from_numpy(total))
        constant = torch.zeros_like(other)
        delattr(module, zero)
        module.register_buffer(zero, constant, persistent=False)
        setattr(module, zero, constant)  # which a whole layer takes into its list of weights
    return network, [other_bias(full) for _, _, full in found]
