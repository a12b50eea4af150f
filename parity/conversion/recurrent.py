"""Rules for recurrent cells, of which PyTorch keeps the gates in one tensor, and two biases where Flax keeps one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx

from parity.conversion.rules import LeafRule, Rules, register_layer, rules_for
from parity.errors import ParityError


def _joined(torch_name: str, names: Sequence[str], **options: Any) -> dict[str, LeafRule]:
    """Variables of one gate each, which PyTorch keeps one below another in one tensor."""
    first, *others = names
    return {
        first: LeafRule(
            torch_name,
            lambda tensor: tuple(part.T for part in np.split(tensor, len(names))),
            lambda values: np.concatenate([value.T for value in values]),
            ndim=1 if torch_name.startswith("bias") else 2,
            others=tuple(others),
            **options,
        )
    }


def _weight(torch_name: str) -> LeafRule:
    return LeafRule(torch_name, np.transpose, np.transpose, ndim=2)


@register_layer(nnx.LSTMCell)
def _lstm(module: nnx.LSTMCell) -> Rules:
    """As `nn.LSTMCell`, whose gates have the same order: i, f, g, o."""
    inputs, hidden = ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")
    return {
        **_joined("weight_ih", [f"{gate}.kernel" for gate in inputs]),
        **_joined("weight_hh", [f"{gate}.kernel" for gate in hidden]),
        **_joined("bias_hh", [f"{gate}.bias" for gate in hidden], summed=slice(None)),
    }


@register_layer(nnx.OptimizedLSTMCell)
def _optimized_lstm(module: nnx.OptimizedLSTMCell) -> Rules:
    return {
        "dense_i.kernel": _weight("weight_ih"),
        "dense_h.kernel": _weight("weight_hh"),
        "dense_h.bias": LeafRule("bias_hh", ndim=1, summed=slice(None)),
    }


@register_layer(nnx.GRUCell)
def _gru(module: nnx.GRUCell) -> Rules:
    """As `nn.GRUCell`, whose gates have the same order: r, z, n; it has no bias inside the reset gate's product."""
    return {
        "dense_i.kernel": _weight("weight_ih"),
        "dense_h.kernel": _weight("weight_hh"),
        "dense_i.bias": LeafRule("bias_ih", ndim=1, summed=slice(2 * module.hidden_features)),
    }


@register_layer(nnx.SimpleCell)
def _simple(module: nnx.SimpleCell) -> Rules:
    """As `nn.RNNCell`."""
    return {
        "dense_i.kernel": _weight("weight_ih"),
        "dense_h.kernel": _weight("weight_hh"),
        "dense_i.bias": LeafRule("bias_ih", ndim=1, summed=slice(None)),
    }


@register_layer(nnx.RNN)
def _rnn(module: nnx.RNN) -> Rules:
    """As the only layer of an `nn.LSTM`, `nn.GRU` or `nn.RNN`."""
    return _of_layer(module, "cell", "_l0")


@register_layer(nnx.Bidirectional)
def _bidirectional(module: nnx.Bidirectional) -> Rules:
    """As the only layer of a bidirectional one."""
    return {
        **_of_layer(module.forward_rnn, "forward_rnn.cell", "_l0"),
        **_of_layer(module.backward_rnn, "backward_rnn.cell", "_l0_reverse"),
    }


def _of_layer(module: Any, path: str, suffix: str) -> dict[str, LeafRule]:
    """The cell's rules, under the names of the layer that holds it; none for a cell of the user's own."""
    if not isinstance(module, nnx.RNN) or not isinstance(module.cell, _CELLS):
        return {}
    return {
        f"{path}.{name}": replace(
            rule,
            torch_name=f"{rule.torch_name}{suffix}",
            others=tuple(f"{path}.{other}" for other in rule.others),
        )
        for name, rule in rules_for(module.cell, path).items()
    }


_CELLS = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)


def other_bias(name: str) -> str:
    """The bias that PyTorch's recurrent layers add to the one of this name."""
    path, dot, leaf = name.rpartition(".")
    swapped = leaf.replace("bias_ih", "bias_hh") if "bias_ih" in leaf else leaf.replace("bias_hh", "bias_ih")
    return f"{path}{dot}{swapped}"


def summed(bias: np.ndarray, other: np.ndarray, rows: slice, name: str) -> np.ndarray:
    """The one bias that stands for two, in their own precision.

    Args:
        rows: of `other`, those that are added; the rest must be zero.
        name: of `other`.

    Raises:
        ParityError: if it is not.
    """
    apart = other.copy()
    apart[rows] = 0
    if apart.any():
        raise ParityError(
            f"{name} is not zero in its last third, which a GRU of PyTorch adds inside the product with the reset "
            "gate: nnx.GRUCell has no such bias; write a subclass that has one, with a rule by parity.register_layer"
        )
    return bias + other
