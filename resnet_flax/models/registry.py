"""Every architecture, one row each."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flax import nnx
from jax.nn.initializers import Initializer

from resnet_flax.errors import UserError
from resnet_flax.layers import Conv, Linear
from resnet_flax.layers.initializers import kaiming_normal, torch_default, xavier_uniform
from resnet_flax.models.blocks import BasicBlock, Block, Bottleneck
from resnet_flax.models.residual import Residual
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.shortcuts import BareConvolution, Shortcut, projection

INITIALIZATIONS: dict[str, tuple[Initializer, Initializer]] = {
    "kaiming_normal": (kaiming_normal, torch_default),
    "torch_default": (torch_default, torch_default),
    "xavier_uniform": (xavier_uniform, xavier_uniform),
}
"""{name: (initializer of the convolutions' kernels, of the head's)}."""


# The PyTorch originals. PyTorch is imported when one is built, not before.


def _torchvision(row: "Architecture", num_classes: int) -> Any:
    """torchvision's network of the same name."""
    import torchvision

    return torchvision.models.get_model(row.name, num_classes=num_classes)


def _torchvision_blocks(row: "Architecture", num_classes: int) -> Any:
    """torchvision's ResNet class with its block of the same name, for a network that torchvision has no name for."""
    from torchvision.models import resnet

    block = getattr(resnet, row.block.__name__)
    return resnet.ResNet(block, list(row.layers), num_classes, groups=row.groups, width_per_group=row.width_per_group)


def _residual_net(row: "Architecture", num_classes: int, *, shortcut_kernel: int) -> Any:
    from resnet_flax.models.originals import ResidualNet

    return ResidualNet(shortcut_kernel=shortcut_kernel, in_channels=row.in_channels, num_classes=num_classes)


@dataclass(frozen=True)
class Architecture:
    """One network of the family: the arguments of `ResNet` that make it, and what it is compared with.

    Attributes:
        block, layers, groups, width_per_group, shortcut, conv_bias: arguments of `ResNet`.
        parameters: their number, with the architecture's own head.
        num_classes, in_channels: the architecture's own; a model may have others.
        initialization: the default one, a name in `INITIALIZATIONS`.
        original: builds the PyTorch original, under the same attribute names, from (row, num_classes).
    """

    name: str
    block: type[Block]
    layers: tuple[int, int, int, int]
    parameters: int
    groups: int = 1
    width_per_group: int = 64
    shortcut: Shortcut = projection
    conv_bias: bool = False
    num_classes: int = 1000
    in_channels: int = 3
    initialization: str = "kaiming_normal"
    original: Callable[["Architecture", int], Any] = _torchvision

    def has_shapes_of(self, other: "Architecture") -> bool:
        """Whether weights of one fit the other: the two differ at most in name, initialization and original."""
        return self == replace(other, name=self.name, initialization=self.initialization, original=self.original)


# The "Residual" networks, for Fashion-MNIST.
_residual = partial(
    Architecture, block=Residual, conv_bias=True, num_classes=10, in_channels=1, initialization="torch_default"
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet18", BasicBlock, (2, 2, 2, 2), 11_689_512),
        Architecture("resnet26", Bottleneck, (2, 2, 2, 2), 15_995_176, original=_torchvision_blocks),
        Architecture("resnet34", BasicBlock, (3, 4, 6, 3), 21_797_672),
        Architecture("resnet50", Bottleneck, (3, 4, 6, 3), 25_557_032),
        Architecture("resnet101", Bottleneck, (3, 4, 23, 3), 44_549_160),
        Architecture("resnet152", Bottleneck, (3, 8, 36, 3), 60_192_808),
        Architecture("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), 25_028_904, groups=32, width_per_group=4),
        Architecture("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), 88_791_336, groups=32, width_per_group=8),
        Architecture("resnext101_64x4d", Bottleneck, (3, 4, 23, 3), 83_455_272, groups=64, width_per_group=4),
        Architecture("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), 68_883_240, width_per_group=128),
        Architecture("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), 126_886_696, width_per_group=128),
        _residual(
            "residual18",
            layers=(2, 2, 2, 2),
            parameters=11_178_378,
            shortcut=BareConvolution(1),
            original=partial(_residual_net, shortcut_kernel=1),
        ),
        _residual(
            "residual18_3x3",
            layers=(2, 2, 2, 2),
            parameters=12_554_634,
            shortcut=BareConvolution(3),
            original=partial(_residual_net, shortcut_kernel=3),
        ),
    )
}

ALIASES: dict[str, Architecture] = {
    "residual18_xavier": replace(ARCHITECTURES["residual18"], initialization="xavier_uniform"),
}
"""Names that are accepted for an architecture with other defaults; the row has the architecture's own name."""


def get_architecture(name: str) -> Architecture:
    """The architecture called `name`, which may be one of `ALIASES`.

    Raises:
        UserError: if there is none; the message has the nearest names.
    """
    rows = ARCHITECTURES | ALIASES
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=3, cutoff=0.5) or ARCHITECTURES
        raise UserError(f"no architecture named {name!r}; did you mean {', '.join(near)}?")
    return rows[name]


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    initialization: str | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> ResNet:
    """A randomly initialised network, in eval mode.

    Args:
        name: one of `ARCHITECTURES` or `ALIASES`.
        num_classes, in_channels, initialization: None takes the architecture's own.
        rngs: where the initial parameters come from.
        options: of `ResNet`. A `conv_layer` or `linear_layer` brings its own initialization.

    Raises:
        UserError: for an unknown name or initialization.
    """
    row = get_architecture(name)
    initialization = row.initialization if initialization is None else initialization
    if initialization not in INITIALIZATIONS:
        raise UserError(f"no initialization named {initialization!r}; there are {', '.join(INITIALIZATIONS)}")
    conv_init, head_init = INITIALIZATIONS[initialization]
    defaults: dict[str, Any] = {
        "conv_layer": partial(Conv, kernel_init=conv_init),
        "linear_layer": partial(Linear, kernel_init=head_init),
    }
    model = ResNet(
        row.block,
        row.layers,
        groups=row.groups,
        width_per_group=row.width_per_group,
        num_classes=row.num_classes if num_classes is None else num_classes,
        in_channels=row.in_channels if in_channels is None else in_channels,
        shortcut=row.shortcut,
        conv_bias=row.conv_bias,
        rngs=rngs,
        **{**defaults, **options},
    )
    model.eval()
    return model
