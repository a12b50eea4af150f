"""The entries of every architecture's state_dict, derived from its row."""

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import Any

from flax import nnx

from parity.conversion.naming import named_modules
from resnet_flax.layers import GroupNorm
from resnet_flax.models import ARCHITECTURES, Architecture, Bottleneck, ResNet

Shape = tuple[int, ...]


class _Outline(nnx.Module):
    """A layer of which only its entries are known, so that a whole network takes milliseconds to build."""

    def __init__(self, **entries: Shape):
        self.entries = tuple(entries.items())


def _conv(
    in_features: int,
    out_features: int,
    kernel_size: int | tuple[int, ...],
    *,
    groups: int = 1,
    use_bias: bool = False,
    **_: Any,
) -> _Outline:
    window = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    weight = (out_features, in_features // groups, *window)
    return _Outline(weight=weight, bias=(out_features,)) if use_bias else _Outline(weight=weight)


def _batch_norm(features: int, **_: Any) -> _Outline:
    fields = ("weight", "bias", "running_mean", "running_var")
    return _Outline(**dict.fromkeys(fields, (features,)), num_batches_tracked=())


def _group_norm(features: int, **_: Any) -> _Outline:
    return _Outline(weight=(features,), bias=(features,))


def _linear(in_features: int, out_features: int, **_: Any) -> _Outline:
    return _Outline(weight=(out_features, in_features), bias=(out_features,))


@cache
def entries(architecture: str) -> dict[str, Shape]:
    """{torchvision's name: PyTorch's shape} of everything in the network's state_dict."""
    return _entries(ARCHITECTURES[architecture])


@cache
def first_entries(architecture: str) -> dict[str, Shape]:
    """The same of the network with only the first block of each stage, which is all that tells it from others."""
    row = ARCHITECTURES[architecture]
    return _entries(replace(row, layers=(1,) * len(row.layers)))


def _entries(row: Architecture) -> dict[str, Shape]:
    is_group_norm = row.options.get("norm_layer") is GroupNorm
    options: dict[str, Any] = {
        **row.options,
        "num_classes": row.num_classes,
        "in_channels": row.in_channels,
        "conv_layer": _conv,
        "norm_layer": _group_norm if is_group_norm else _batch_norm,
        "linear_layer": _linear,
    }
    model = ResNet(row.block, row.layers, rngs=nnx.Rngs(0), **options)
    return {
        f"{path}.{name}": shape
        for path, module in named_modules(model)
        if isinstance(module, _Outline)
        for name, shape in module.entries
    }


Kind = tuple[bool, bool, bool, str, bool, bool]


def kind_of_row(row: Architecture) -> Kind:
    """What tells apart most architectures of the same depth without their being built; see `kind_of_entries`."""
    options = row.options
    blocks = row.block if isinstance(row.block, tuple) else (row.block,)
    return (
        "deep" in options.get("stem_type", ""),
        options.get("replace_stem_pool", False),
        options.get("avg_down", False),
        options.get("attn_layer", ""),
        Bottleneck in blocks,
        options.get("norm_layer") is GroupNorm,
    )


def kind_of_entries(names: Collection[str]) -> Kind:
    """Whether entries have a deep stem, a pool with parameters, pooled shortcuts, which attention, bottlenecks, and
    norms without statistics."""
    ends = {name.split(".", 2)[-1] for name in names if name.startswith("layer")}
    return (
        "conv1.0.weight" in names,
        any(name.startswith("maxpool.") for name in names),
        "downsample.2.weight" in ends,
        "se" if "se.fc1.weight" in ends else "eca" if "se.conv.weight" in ends else "",
        "conv3.weight" in ends and "conv3.bias" not in ends,
        not any(end.endswith("running_mean") for end in ends),
    )


@cache
def representatives() -> tuple[str, ...]:
    """One architecture of each kind and number of stages: between them, they have every name in the family."""
    found = {
        (kind_of_row(row), row.block, len(row.layers), "shortcut" in row.options): row.name
        for row in ARCHITECTURES.values()
    }
    return tuple(found.values())
