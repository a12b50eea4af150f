"""What may be different about one call of a PyTorch function; each family of functions has a file of its own."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from parity.diagnosis.program import Call, Replacement

Variants = Iterable[tuple[str, Replacement]]
"""What the candidate would be doing, in words, and the call that does it."""

# The names of the arguments after the first, where the functions themselves do not give them.
_SIGNATURES = {
    "conv": "weight bias stride padding dilation groups",
    "conv_transpose": "weight bias stride padding output_padding groups dilation",
    "avg_pool": "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "max_pool": "kernel_size stride padding dilation ceil_mode return_indices",
    "layer_norm": "normalized_shape weight bias eps",
    "rms_norm": "normalized_shape weight eps",
    "group_norm": "num_groups weight bias eps",
    "batch_norm": "running_mean running_var weight bias training momentum eps",
    "instance_norm": "running_mean running_var weight bias use_input_stats momentum eps",
    "normalize": "p dim eps",
    "softmax": "dim _stacklevel dtype",
    "log_softmax": "dim _stacklevel dtype",
    "gelu": "approximate",
    "leaky_relu": "negative_slope inplace",
    "elu": "alpha inplace",
    "softplus": "beta threshold",
    "interpolate": "size scale_factor mode align_corners recompute_scale_factor antialias",
    "pad": "pad mode value",
    "embedding": "weight padding_idx",
    "linear": "weight bias",
    "scaled_dot_product_attention": "key value attn_mask dropout_p is_causal scale",
    "cross_entropy": "target weight size_average ignore_index reduce reduction label_smoothing",
    "mean": "dim keepdim",
    "var": "dim correction keepdim",
    "std": "dim correction keepdim",
    "chunk": "chunks dim",
    "split": "split_size_or_sections dim",
    "cat": "dim",
    "stack": "dim",
    "tril": "diagonal",
    "triu": "diagonal",
    "masked_fill": "mask value",
    "flatten": "start_dim end_dim",
}

_VARIANTS: list[tuple[frozenset[str], Callable[[Call], Variants]]] = []


def alters(*kinds: str) -> Callable[[Callable[[Call], Variants]], Callable[[Call], Variants]]:
    """Decorates a function that gives the variants of a call of these functions ("conv" for `conv2d` and the like)."""

    def register(family: Callable[[Call], Variants]) -> Callable[[Call], Variants]:
        _VARIANTS.append((frozenset(kinds), family))
        return family

    return register


def variants(call: Call) -> Iterator[tuple[str, Replacement]]:
    """Everything known that may be different about a call."""
    for kinds, family in _VARIANTS:
        if kind(call) in kinds:
            yield from family(call)


def kind(call: Call) -> str:
    """The function's name without dimensions: "conv" for `conv2d`; "div" for `/`."""
    name = call.name[:-2] if call.name.endswith(("1d", "2d", "3d")) else call.name
    return {"truediv": "div", "multiply": "mul", "concat": "cat", "subtract": "sub"}.get(name, name)


def arguments(call: Call) -> dict[str, Any]:
    """All arguments after the first, by name."""
    names = _SIGNATURES.get(kind(call), "").split()
    return dict(zip(names, call.args[1:], strict=False)) | call.kwargs


def changed(**settings: Any) -> Replacement:
    """The same call with some arguments changed."""
    return lambda call, _: call.function(call.args[0], **{**arguments(call), **settings})


def computed(function: Callable[..., Any]) -> Replacement:
    """`function(first argument)` instead of the call."""
    return lambda call, _: function(call.args[0])


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def as_pair(value: Any, count: int = 2) -> tuple[int, ...]:
    """(2, 2) for 2 and for (2,)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def spelt(value: Any) -> str:
    """(2, 2) as 2."""
    if isinstance(value, tuple | list) and value and all(item == value[0] for item in value):
        value = value[0]
    return f"{value:g}" if isinstance(value, float) else str(value)
