"""Every architecture, one row each."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flax import nnx
from jax.nn.initializers import Initializer

from parity.errors import needs_extra
from resnet_flax.errors import UserError
from resnet_flax.layers import Conv, GroupNorm, Linear
from resnet_flax.layers.initializers import kaiming_normal, torch_default, xavier_uniform
from resnet_flax.models.arguments import require_known
from resnet_flax.models.blocks import BasicBlock, Block, Bottleneck
from resnet_flax.models.residual import Residual
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.shortcuts import BareConvolution, zero_padded

INITIALIZATIONS: dict[str, tuple[Initializer, Initializer]] = {
    "kaiming_normal": (kaiming_normal, torch_default),
    "torch_default": (torch_default, torch_default),
    "xavier_uniform": (xavier_uniform, xavier_uniform),
}
"""{name: (initializer of the convolutions' kernels, of the head's)}."""


# The PyTorch originals. PyTorch is imported when one is built, not before.


def _torchvision(row: "Architecture", num_classes: int, output_stride: int = 32) -> Any:
    """torchvision's network of the same name; timm's where torchvision has no dilation."""
    if row.block is BasicBlock and output_stride != 32:
        return _timm(row, num_classes, output_stride)
    import torchvision

    dilate = (False, output_stride == 8, output_stride < 32)
    return torchvision.models.get_model(row.name, num_classes=num_classes, replace_stride_with_dilation=dilate)


def _timm(row: "Architecture", num_classes: int, output_stride: int = 32) -> Any:
    """timm's network of the same name."""
    with needs_extra("torch", f"PyTorch's {row.name}"):
        import timm
    return timm.create_model(row.name, num_classes=num_classes, output_stride=output_stride)


def _wsl(row: "Architecture", num_classes: int, output_stride: int = 32) -> Any:
    """torchvision's class with a row's widths, as facebookresearch/WSL-Images builds it."""
    from torchvision.models import resnet

    dilate = (False, output_stride == 8, output_stride < 32)
    return resnet.ResNet(
        resnet.Bottleneck,
        list(row.layers),
        num_classes=num_classes,
        replace_stride_with_dilation=list(dilate),
        **row.options,
    )


def _residual_net(row: "Architecture", num_classes: int, output_stride: int = 32, *, shortcut_kernel: int) -> Any:
    from resnet_flax.models.originals import ResidualNet

    _not_dilated(row, output_stride)
    return ResidualNet(shortcut_kernel=shortcut_kernel, in_channels=row.in_channels, num_classes=num_classes)


def _cifar_net(row: "Architecture", num_classes: int, output_stride: int = 32) -> Any:
    from resnet_flax.models.originals import CifarResNet

    _not_dilated(row, output_stride)
    return CifarResNet(row.layers, num_classes=num_classes, projects="shortcut" not in row.options)


def _not_dilated(row: "Architecture", output_stride: int) -> None:
    if output_stride != 32:
        raise UserError(f"{row.name} has no dilated original in PyTorch; nothing to compare output_stride with")


@dataclass(frozen=True)
class Architecture:
    """One network of the family: the arguments of `ResNet` that make it, and what it is compared with.

    Attributes:
        block, layers: arguments of `ResNet`.
        parameters: their number, with the architecture's own head.
        gmacs: billions of multiply-accumulates at `image_size` (`resnet_flax.models.cost.multiply_accumulates`).
        options: further arguments of `ResNet`.
        num_classes, in_channels: the architecture's own; a model may have others.
        image_size: the height and width that it was published for, in pixels.
        initialization: the default one, a name in `INITIALIZATIONS`.
        original: builds the PyTorch original, under the same attribute names, from (row, num_classes, output_stride).
    """

    name: str
    block: type[Block] | tuple[type[Block], ...]
    layers: tuple[int, ...]
    parameters: int
    gmacs: float
    options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    initialization: str = "kaiming_normal"
    original: Callable[..., Any] = _torchvision

    @property
    def is_in_timm(self) -> bool:
        """Whether timm has the same network under the same name; it has torchvision's."""
        return self.original in (_torchvision, _timm)

    def has_shapes_of(self, other: "Architecture") -> bool:
        """Whether weights of one fit the other, which may still be another function of them."""
        return self._entries == other._entries

    @property
    def _entries(self) -> tuple[Any, ...]:
        shaping = {name: value for name, value in self.options.items() if name not in _SHAPELESS}
        return self.block, self.layers, shaping, self.num_classes, self.in_channels


_SHAPELESS = ("aa_layer", "global_pool")
"""Options of rows that change no name and no shape, unless the stem's pool has parameters, which no row combines."""

# The options that rows share, by the letter or syllable that names have for them.
_C = {"stem_type": "deep", "stem_width": 32}
_AVG_DOWN = {"avg_down": True}
_D = _C | _AVG_DOWN
_E = _D | {"stem_width": 64}
_S = {"stem_type": "deep", "stem_width": 64}
_T = _D | {"stem_type": "deep_tiered"}
_SE = {"attn_layer": "se"}
_ECA = {"attn_layer": "eca"}
_AA = {"aa_layer": "avg"}
_BLUR = {"aa_layer": "blur"}
_RS = _D | _SE | {"rd_ratio": 0.25, "replace_stem_pool": True}
_SENET = {"down_kernel_size": 3, "block_reduce_first": 2}


def _next(groups: int, width_per_group: int) -> dict[str, Any]:
    return {"groups": groups, "width_per_group": width_per_group}


_timm_row = partial(Architecture, original=_timm)

# The "Residual" networks, for Fashion-MNIST.
_residual = partial(
    Architecture,
    block=Residual,
    layers=(2, 2, 2, 2),
    num_classes=10,
    in_channels=1,
    initialization="torch_default",
)

# The networks for CIFAR-10 of He et al. 2015 (arXiv:1512.03385), section 4.2: 6n + 2 layers.
_CIFAR = {"stem_type": "small", "channels": (16, 32, 64)}
# {n: parameters with option A, GMACs with option A and with projections}
_CIFAR_SIZES = {
    3: (269_722, 0.041, 0.041),
    5: (464_154, 0.069, 0.069),
    7: (658_586, 0.097, 0.097),
    9: (853_018, 0.125, 0.126),
    18: (1_727_962, 0.253, 0.253),
}
_PROJECTIONS = 2_752


def _cifar(n: int, *, projects: bool) -> Architecture:
    parameters, padded, projected = _CIFAR_SIZES[n]
    return Architecture(
        f"cifar_resnet{6 * n + 2}" + ("_projection" if projects else ""),
        BasicBlock,
        (n, n, n),
        parameters + (_PROJECTIONS if projects else 0),
        projected if projects else padded,
        _CIFAR if projects else _CIFAR | {"shortcut": zero_padded},
        num_classes=10,
        image_size=32,
        original=_cifar_net,
    )


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet18", BasicBlock, (2, 2, 2, 2), 11_689_512, 1.814),
        Architecture("resnet34", BasicBlock, (3, 4, 6, 3), 21_797_672, 3.664),
        Architecture("resnet50", Bottleneck, (3, 4, 6, 3), 25_557_032, 4.089),
        Architecture("resnet101", Bottleneck, (3, 4, 23, 3), 44_549_160, 7.801),
        Architecture("resnet152", Bottleneck, (3, 8, 36, 3), 60_192_808, 11.514),
        Architecture("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), 25_028_904, 4.230, _next(32, 4)),
        Architecture("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), 88_791_336, 16.414, _next(32, 8)),
        Architecture("resnext101_64x4d", Bottleneck, (3, 4, 23, 3), 83_455_272, 15.460, _next(64, 4)),
        Architecture("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), 68_883_240, 11.398, {"width_per_group": 128}),
        Architecture("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), 126_886_696, 22.753, {"width_per_group": 128}),
        Architecture(
            "resnext101_32x48d", Bottleneck, (3, 4, 23, 3), 828_411_176, 153.310, _next(32, 48), original=_wsl
        ),
        _residual(
            "residual18",
            parameters=11_178_378,
            gmacs=1.735,
            options={"shortcut": BareConvolution(1), "conv_bias": True},
            original=partial(_residual_net, shortcut_kernel=1),
        ),
        _residual(
            "residual18_3x3",
            parameters=12_554_634,
            gmacs=1.889,
            options={"shortcut": BareConvolution(3), "conv_bias": True},
            original=partial(_residual_net, shortcut_kernel=3),
        ),
        *(_cifar(n, projects=projects) for projects in (False, True) for n in _CIFAR_SIZES),
        _timm_row("resnet10t", BasicBlock, (1, 1, 1, 1), 5_435_488, 0.699, _T, image_size=176),
        _timm_row("resnet14t", Bottleneck, (1, 1, 1, 1), 10_081_632, 1.068, _T, image_size=176),
        _timm_row("resnet18d", BasicBlock, (2, 2, 2, 2), 11_708_744, 2.054, _D),
        _timm_row("resnet34d", BasicBlock, (3, 4, 6, 3), 21_816_904, 3.903, _D),
        _timm_row("resnet26", Bottleneck, (2, 2, 2, 2), 15_995_176, 2.342, {}),
        _timm_row("resnet26t", Bottleneck, (2, 2, 2, 2), 16_011_872, 3.330, _T, image_size=256),
        _timm_row("resnet26d", Bottleneck, (2, 2, 2, 2), 16_014_408, 2.582, _D),
        _timm_row("resnet50c", Bottleneck, (3, 4, 6, 3), 25_576_264, 4.329, _C),
        _timm_row("resnet50d", Bottleneck, (3, 4, 6, 3), 25_576_264, 4.329, _D),
        _timm_row("resnet50s", Bottleneck, (3, 4, 6, 3), 25_680_808, 5.444, _S),
        _timm_row("resnet50t", Bottleneck, (3, 4, 6, 3), 25_573_728, 4.297, _T),
        _timm_row("resnet101c", Bottleneck, (3, 4, 23, 3), 44_568_392, 8.041, _C),
        _timm_row("resnet101d", Bottleneck, (3, 4, 23, 3), 44_568_392, 10.502, _D, image_size=256),
        _timm_row("resnet101s", Bottleneck, (3, 4, 23, 3), 44_672_936, 9.157, _S),
        _timm_row("resnet152c", Bottleneck, (3, 8, 36, 3), 60_212_040, 11.753, _C),
        _timm_row("resnet152d", Bottleneck, (3, 8, 36, 3), 60_212_040, 15.351, _D, image_size=256),
        _timm_row("resnet152s", Bottleneck, (3, 8, 36, 3), 60_316_584, 12.869, _S),
        _timm_row("resnet200", Bottleneck, (3, 24, 36, 3), 64_673_832, 15.007, {}),
        _timm_row("resnet200d", Bottleneck, (3, 24, 36, 3), 64_693_064, 19.914, _D, image_size=256),
        _timm_row("resnet50_gn", Bottleneck, (3, 4, 6, 3), 25_557_032, 4.089, {"norm_layer": GroupNorm}),
        _timm_row("resnext50d_32x4d", Bottleneck, (3, 4, 6, 3), 25_048_136, 4.470, _D | _next(32, 4)),
        _timm_row("resnext101_32x4d", Bottleneck, (3, 4, 23, 3), 44_177_704, 7.970, _next(32, 4)),
        _timm_row("resnext101_32x16d", Bottleneck, (3, 4, 23, 3), 194_026_792, 36.163, _next(32, 16)),
        _timm_row("resnext101_32x32d", Bottleneck, (3, 4, 23, 3), 468_530_472, 87.107, _next(32, 32)),
        _timm_row("ecaresnet26t", Bottleneck, (2, 2, 2, 2), 16_011_916, 3.330, _T | _ECA, image_size=256),
        _timm_row("ecaresnet50d", Bottleneck, (3, 4, 6, 3), 25_576_350, 4.329, _D | _ECA),
        _timm_row("ecaresnet50t", Bottleneck, (3, 4, 6, 3), 25_573_814, 5.612, _T | _ECA, image_size=256),
        _timm_row("ecaresnetlight", Bottleneck, (1, 1, 11, 3), 30_162_046, 4.089, _AVG_DOWN | _ECA),
        _timm_row("ecaresnet101d", Bottleneck, (3, 4, 23, 3), 44_568_563, 8.041, _D | _ECA),
        _timm_row("ecaresnet200d", Bottleneck, (3, 24, 36, 3), 64_693_400, 19.914, _D | _ECA, image_size=256),
        _timm_row("ecaresnet269d", Bottleneck, (3, 30, 48, 8), 102_093_077, 41.365, _D | _ECA, image_size=320),
        _timm_row("ecaresnext26t_32x4d", Bottleneck, (2, 2, 2, 2), 15_406_220, 2.679, _T | _next(32, 4) | _ECA),
        _timm_row("ecaresnext50t_32x4d", Bottleneck, (3, 4, 6, 3), 25_045_686, 4.439, _T | _next(32, 4) | _ECA),
        _timm_row("seresnet18", BasicBlock, (2, 2, 2, 2), 11_779_624, 1.814, _SE),
        _timm_row("seresnet34", BasicBlock, (3, 4, 6, 3), 21_960_416, 3.664, _SE),
        _timm_row("seresnet50", Bottleneck, (3, 4, 6, 3), 28_088_024, 4.092, _SE),
        _timm_row("seresnet50t", Bottleneck, (3, 4, 6, 3), 28_104_720, 4.300, _T | _SE),
        _timm_row("seresnet101", Bottleneck, (3, 4, 23, 3), 49_326_872, 7.806, _SE),
        _timm_row("seresnet152", Bottleneck, (3, 8, 36, 3), 66_821_848, 11.520, _SE),
        _timm_row("seresnet152d", Bottleneck, (3, 8, 36, 3), 66_841_080, 15.357, _D | _SE, image_size=256),
        _timm_row("seresnet200d", Bottleneck, (3, 24, 36, 3), 71_855_096, 19.921, _D | _SE, image_size=256),
        _timm_row("seresnet269d", Bottleneck, (3, 30, 48, 8), 113_672_760, 26.485, _D | _SE, image_size=256),
        _timm_row("seresnext26d_32x4d", Bottleneck, (2, 2, 2, 2), 16_809_512, 2.712, _D | _next(32, 4) | _SE),
        _timm_row("seresnext26t_32x4d", Bottleneck, (2, 2, 2, 2), 16_806_976, 2.680, _T | _next(32, 4) | _SE),
        _timm_row("seresnext50_32x4d", Bottleneck, (3, 4, 6, 3), 27_559_896, 4.233, _next(32, 4) | _SE),
        _timm_row("seresnext101_32x4d", Bottleneck, (3, 4, 23, 3), 48_955_416, 7.975, _next(32, 4) | _SE),
        _timm_row("seresnext101_32x8d", Bottleneck, (3, 4, 23, 3), 93_569_048, 16.419, _next(32, 8) | _SE),
        _timm_row("seresnext101d_32x8d", Bottleneck, (3, 4, 23, 3), 93_588_280, 16.658, _D | _next(32, 8) | _SE),
        _timm_row("seresnext101_64x4d", Bottleneck, (3, 4, 23, 3), 88_232_984, 15.465, _next(64, 4) | _SE),
        _timm_row("senet154", Bottleneck, (3, 8, 36, 3), 115_088_984, 20.688, _S | _next(64, 4) | _SE | _SENET),
        _timm_row("resnetblur18", BasicBlock, (2, 2, 2, 2), 11_689_512, 2.334, _BLUR),
        _timm_row("resnetblur50", Bottleneck, (3, 4, 6, 3), 25_557_032, 5.130, _BLUR),
        _timm_row("resnetblur50d", Bottleneck, (3, 4, 6, 3), 25_576_264, 5.369, _D | _BLUR),
        _timm_row("resnetblur101d", Bottleneck, (3, 4, 23, 3), 44_568_392, 9.081, _D | _BLUR),
        _timm_row("resnetaa34d", BasicBlock, (3, 4, 6, 3), 21_816_904, 4.424, _D | _AA),
        _timm_row("resnetaa50", Bottleneck, (3, 4, 6, 3), 25_557_032, 5.130, _AA),
        _timm_row("resnetaa50d", Bottleneck, (3, 4, 6, 3), 25_576_264, 5.369, _D | _AA),
        _timm_row("resnetaa101d", Bottleneck, (3, 4, 23, 3), 44_568_392, 9.081, _D | _AA),
        _timm_row("seresnetaa50d", Bottleneck, (3, 4, 6, 3), 28_107_256, 5.372, _D | _SE | _AA),
        _timm_row(
            "seresnextaa101d_32x8d",
            Bottleneck,
            (3, 4, 23, 3),
            93_588_280,
            28.393,
            _D | _next(32, 8) | _SE | _AA,
            image_size=288,
        ),
        _timm_row(
            "seresnextaa201d_32x8d",
            Bottleneck,
            (3, 24, 36, 4),
            149_394_904,
            100.712,
            _E | _next(32, 8) | _SE | _AA,
            image_size=384,
        ),
        _timm_row("resnetrs50", Bottleneck, (3, 4, 6, 3), 35_691_912, 2.279, _RS, image_size=160),
        _timm_row("resnetrs101", Bottleneck, (3, 4, 23, 3), 63_618_696, 6.012, _RS, image_size=192),
        _timm_row("resnetrs152", Bottleneck, (3, 8, 36, 3), 86_621_576, 15.528, _RS, image_size=256),
        _timm_row("resnetrs200", Bottleneck, (3, 24, 36, 3), 93_209_992, 20.093, _RS, image_size=256),
        _timm_row("resnetrs270", Bottleneck, (4, 29, 53, 4), 129_861_448, 26.950, _RS, image_size=256),
        _timm_row("resnetrs350", Bottleneck, (4, 36, 72, 4), 163_956_168, 43.494, _RS, image_size=288),
        _timm_row("resnetrs420", Bottleneck, (4, 44, 87, 4), 191_891_656, 63.942, _RS, image_size=320),
        _timm_row(
            "test_resnet",
            (BasicBlock, BasicBlock, Bottleneck, BasicBlock),
            (1, 1, 1, 1),
            469_688,
            0.103,
            _D | {"stem_width": 16, "channels": (32, 48, 48, 96)},
            image_size=160,
        ),
    )
}
"""{name: what the architecture is built of, and its numbers of parameters and multiply-accumulates}.

Examples:
    >>> import resnet_flax
    >>> resnet_flax.ARCHITECTURES["resnet50"].parameters
    25557032
"""

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
        near = difflib.get_close_matches(name, rows, n=3, cutoff=0.5)
        way_on = f"did you mean {', '.join(near)}?" if near else "`python -m resnet_flax models` lists them"
        raise UserError(f"no architecture named {name!r}; {way_on}")
    return rows[name]


def list_models(pattern: str = "*") -> list[str]:
    """The names of the architectures that match a pattern (* for any characters, ? for one, [...] for one of these).

    Examples:
        >>> import resnet_flax
        >>> resnet_flax.list_models("resnet18*")
        ['resnet18', 'resnet18d']
    """
    return fnmatch.filter(ARCHITECTURES, pattern)


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
        UserError: for an unknown name, option or initialization.
    """
    require_known(options)
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
        num_classes=row.num_classes if num_classes is None else num_classes,
        in_channels=row.in_channels if in_channels is None else in_channels,
        rngs=rngs,
        **{**defaults, **row.options, **options},
    )
    model.eval()
    return model
