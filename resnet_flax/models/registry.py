"""Every architecture, one row each."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.layers import Conv, Linear
from resnet_flax.layers.initializers import torch_default, xavier_uniform
from resnet_flax.models.blocks import BasicBlock, Bottleneck
from resnet_flax.models.residual import Residual, Residual3x3
from resnet_flax.models.resnet import ResNet


@dataclass(frozen=True)
class Architecture:
    """What makes one network of the family: the arguments of `ResNet` that are its own, and the resulting size.

    `parameters` counts those of the network with its own head.
    """

    name: str
    block: type[Any]
    layers: tuple[int, int, int, int]
    parameters: int
    groups: int = 1
    width_per_group: int = 64
    num_classes: int = 1000
    in_channels: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)

    def has_shapes_of(self, other: "Architecture") -> bool:
        """Whether the weights of one fit the other: what differs is the name and how they are initialised."""
        return replace(self, name="", options={}) == replace(other, name="", options={})


_PLAIN = {"conv_layer": partial(Conv, use_bias=True, kernel_init=torch_default)}
_XAVIER = {
    "conv_layer": partial(Conv, use_bias=True, kernel_init=xavier_uniform),
    "linear_layer": partial(Linear, kernel_init=xavier_uniform),
}
_GREY = {"num_classes": 10, "in_channels": 1}

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet18", BasicBlock, (2, 2, 2, 2), 11_689_512),
        Architecture("resnet34", BasicBlock, (3, 4, 6, 3), 21_797_672),
        Architecture("resnet50", Bottleneck, (3, 4, 6, 3), 25_557_032),
        Architecture("resnet101", Bottleneck, (3, 4, 23, 3), 44_549_160),
        Architecture("resnet152", Bottleneck, (3, 8, 36, 3), 60_192_808),
        Architecture("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), 25_028_904, groups=32, width_per_group=4),
        Architecture("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), 88_791_336, groups=32, width_per_group=8),
        Architecture("resnext101_64x4d", Bottleneck, (3, 4, 23, 3), 83_455_272, groups=64, width_per_group=4),
        Architecture("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), 68_883_240, width_per_group=128),
        Architecture("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), 126_886_696, width_per_group=128),
        # The "Residual" networks for Fashion-MNIST: 1x1 or 3x3 shortcuts, PyTorch's default or Xavier initialisation.
        Architecture("residual18", Residual, (2, 2, 2, 2), 11_178_378, **_GREY, options=_PLAIN),
        Architecture("residual18_3x3", Residual3x3, (2, 2, 2, 2), 12_554_634, **_GREY, options=_PLAIN),
        Architecture("residual18_xavier", Residual, (2, 2, 2, 2), 11_178_378, **_GREY, options=_XAVIER),
    )
}


def get_architecture(name: str) -> Architecture:
    """The architecture called `name`.

    Raises:
        UserError: if there is none; the message has the nearest names.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5) or ARCHITECTURES
        raise UserError(f"no architecture named {name!r}; did you mean {', '.join(near)}?")
    return ARCHITECTURES[name]


def build_model(
    name: str, *, num_classes: int | None = None, in_channels: int | None = None, rngs: nnx.Rngs, **options: Any
) -> ResNet:
    """A randomly initialised network, in eval mode; `options` are those of `ResNet`.

    Args:
        name: one of `ARCHITECTURES`.
        num_classes, in_channels: None takes the architecture's own.
        rngs: where the initial parameters come from.
    """
    row = get_architecture(name)
    model = ResNet(
        row.block,
        row.layers,
        groups=row.groups,
        width_per_group=row.width_per_group,
        num_classes=row.num_classes if num_classes is None else num_classes,
        in_channels=row.in_channels if in_channels is None else in_channels,
        rngs=rngs,
        **{**row.options, **options},
    )
    model.eval()
    return model
