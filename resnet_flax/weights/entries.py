"""The entries of every architecture's state_dict, derived from its row."""

from functools import cache
from typing import Any

from flax import nnx

from parity.conversion.naming import named_modules
from resnet_flax.models import build_model

Shape = tuple[int, ...]


class _Outline(nnx.Module):
    """A layer of which only its entries are known, so that a whole network takes milliseconds to build."""

    def __init__(self, **entries: Shape):
        self.entries = tuple(entries.items())


def _conv(
    in_features: int, out_features: int, kernel_size: int, *, groups: int = 1, use_bias: bool = False, **_: Any
) -> _Outline:
    weight = (out_features, in_features // groups, kernel_size, kernel_size)
    return _Outline(weight=weight, bias=(out_features,)) if use_bias else _Outline(weight=weight)


def _norm(features: int, **_: Any) -> _Outline:
    fields = ("weight", "bias", "running_mean", "running_var")
    return _Outline(**dict.fromkeys(fields, (features,)), num_batches_tracked=())


def _linear(in_features: int, out_features: int, **_: Any) -> _Outline:
    return _Outline(weight=(out_features, in_features), bias=(out_features,))


@cache
def entries(architecture: str) -> dict[str, Shape]:
    """{torchvision's name: PyTorch's shape} of everything in the network's state_dict."""
    model = build_model(architecture, conv_layer=_conv, norm_layer=_norm, linear_layer=_linear, rngs=nnx.Rngs(0))
    return {
        f"{path}.{name}": shape
        for path, module in named_modules(model)
        if isinstance(module, _Outline)
        for name, shape in module.entries
    }
