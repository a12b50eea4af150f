"""What wrappers and tools do to a network's entries: names they add, and parameters they store in another form."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from parity.errors import needs_extra

_WRAPPERS = frozenset(("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"))
_INSIDE = tuple(f".{name}." for name in _WRAPPERS)
_COLLECTIONS = frozenset(("params", "batch_stats"))  # of Flax's variables


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """{name: it without the components that `torch.compile`, `DataParallel`, checkpointing and FSDP add inside}.

    Those that all names begin with stay: they are a prefix. Flax's collections are dropped from the beginning.
    """
    return {name: _unwrapped(name) for name in names}


def _unwrapped(name: str) -> str:
    first, _, rest = name.partition(".")
    if first in _COLLECTIONS and rest:
        name = rest
    if not any(part in name for part in _INSIDE):
        return name
    components = name.split(".")
    lead = next((i for i, part in enumerate(components) if part not in _WRAPPERS), len(components))
    return ".".join([*components[:lead], *(part for part in components[lead:] if part not in _WRAPPERS)])


def _weight_norm(torch: Any, magnitude: Any, direction: Any) -> Any:
    # torch.nn.utils.weight_norm's default: one magnitude for each output
    return torch._weight_norm(direction, magnitude, 0)


def _spectral_norm(torch: Any, weight: Any, u: Any, v: Any) -> Any:
    # torch.nn.utils.spectral_norm in eval mode: no power iteration; dim 0, as for convolutions and linear layers
    return weight / torch.vdot(u, torch.mv(weight.flatten(1), v))


def _pruned(torch: Any, weight: Any, mask: Any) -> Any:
    return mask.to(weight.dtype) * weight


_FORMS: tuple[tuple[str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("weight norm", ("parametrizations.{}.original0", "parametrizations.{}.original1"), _weight_norm),
    ("weight norm", ("{}_g", "{}_v"), _weight_norm),
    (
        "spectral norm",
        ("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v"),
        _spectral_norm,
    ),
    ("spectral norm", ("{}_orig", "{}_u", "{}_v"), _spectral_norm),
    ("pruning", ("{}_orig", "{}_mask"), _pruned),
)
"""(what it is, the entries that a parameter is stored as, how PyTorch computes it from them)."""

_HINT = re.compile(r"parametrizations\.\w+\.original|_g$|_orig$")


def computed(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors with every reparametrised one computed as PyTorch computes it, and a sentence for each kind.

    They take the place of the first of the entries that they are computed from.
    """
    if not any(_HINT.search(name) for name in tensors):
        return dict(tensors), []
    with needs_extra("torch", "computing reparametrised weights", "save the network without its parametrizations"):
        import torch
    results: dict[str, tuple[str, np.ndarray]] = {}
    consumed: set[str] = set()
    counts: dict[str, int] = {}
    for kind, entries, function in _FORMS:
        first = entries[0]
        lead, tail = first.split("{}")
        pattern = re.compile(rf"(.*\.|){re.escape(lead)}(\w+?){re.escape(tail)}")
        for name in tensors:
            match = pattern.fullmatch(name)
            names = [f"{match[1]}{entry.format(match[2])}" for entry in entries] if match else []
            if not match or name in consumed or not all(part in tensors for part in names):
                continue
            parts = [torch.from_numpy(np.array(tensors[part])) for part in names]
            results[name] = (f"{match[1]}{match[2]}", function(torch, *parts).numpy())
            consumed.update(names)
            counts[kind] = counts.get(kind, 0) + 1
    kept: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name in results:
            kept[results[name][0]] = results[name][1]
        elif name not in consumed:
            kept[name] = array
    return kept, [
        f"{count} weights are stored under {kind}; they were computed as PyTorch computes them, and are stored plainly "
        "from here on"
        for kind, count in counts.items()
    ]


def unfolded(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A network whose norms were folded into its convolutions, as one with norms that change nothing.

    y = conv(x) + b is y = 1 * (conv(x) - 0) / sqrt(1 + 0) + b, bit for bit, with the norm's epsilon 0.

    Returns:
        The entries under torchvision's names, and {their name of a bias: the norm's}; empty where nothing is folded.
    """
    biases = {name: f"{norm}.bias" for name in state_dict if (norm := _norm_of(name, state_dict))}
    norms = any(re.search(r"(^|\.)bn\d\.|running_mean$", name) for name in state_dict)
    if norms or not biases.keys() & {"conv1.bias", "conv1.0.bias"}:
        return state_dict, {}
    result: dict[str, Any] = {}
    for name, array in state_dict.items():
        if name not in biases:
            result[name] = array
            continue
        norm = biases[name].removesuffix(".bias")
        ones, zeros = np.ones_like(array), np.zeros_like(array)
        result |= {f"{norm}.weight": ones, f"{norm}.bias": array, f"{norm}.running_mean": zeros}
        result[f"{norm}.running_var"] = ones.copy()
    return result, biases


def _norm_of(bias: str, state_dict: Mapping[str, Any]) -> str:
    """The norm after the convolution that an entry is the bias of, or "" for any other entry."""
    module, _, leaf = bias.rpartition(".")
    kernel = state_dict.get(f"{module}.weight")
    if leaf != "bias" or kernel is None or kernel.ndim != 4:
        return ""
    if match := re.fullmatch(r"(layer\d+\.\d+\.|)conv(\d)", module):
        return f"{match[1]}bn{match[2]}"
    if module == _LAST_OF_A_DEEP_STEM:
        return "bn1"
    if match := re.fullmatch(r"(conv1\.|maxpool\.|layer\d+\.\d+\.downsample\.)(\d)", module):
        return f"{match[1]}{int(match[2]) + 1}"
    return ""


_LAST_OF_A_DEEP_STEM = "conv1.6"
