"""What no shape shows of a network, such as its activation, as text beside its weights.

The text is JSON, {option of `ResNet`: value}, and holds only what differs from the architecture's own. An activation is
written as its name in `ACTIVATIONS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import jax
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models import ResNet, get_architecture
from resnet_flax.models.resnet import GlobalPool
from resnet_flax.models.stems import AntiAliasing

_exact_gelu = partial(nnx.gelu, approximate=False)
_tanh_gelu = partial(nnx.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "relu6": nnx.relu6,
    "leaky_relu": nnx.leaky_relu,
    "gelu": _exact_gelu,
    "gelu_tanh": _tanh_gelu,
    "silu": nnx.silu,
    "elu": nnx.elu,
    "celu": nnx.celu,
    "selu": nnx.selu,
    "tanh": nnx.tanh,
    "sigmoid": nnx.sigmoid,
    "hard_swish": nnx.hard_swish,
    "hard_sigmoid": nnx.hard_sigmoid,
}
"""Under the names of timm and transformers, with PyTorch's default parameters."""

ALIASES = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "hardswish": "hard_swish"}

_VALUES: dict[str, Callable[[Any], bool]] = {
    "activation": lambda value: isinstance(value, str),
    "norm_epsilon": lambda value: isinstance(value, float) and 0 <= value < 1,
    "output_stride": lambda value: value in (8, 16, 32),
    "replace_stride_with_dilation": lambda value: isinstance(value, list) and set(map(type, value)) == {bool},
    "last_stride": lambda value: value in (1, 2),
    "stride_in_first_1x1": lambda value: isinstance(value, bool),
    "max_pool_ceil": lambda value: isinstance(value, bool),
    "aa_layer": lambda value: value in get_args(AntiAliasing),
    "global_pool": lambda value: value in get_args(GlobalPool),
}
"""The options that the text may hold, and whether a value is one of theirs."""

_DILATION = {"output_stride", "replace_stride_with_dilation"}


def activation_named(name: Any, field: str) -> str:
    """The name in `ACTIVATIONS` of what others call `name`; a UserError that names `field` if there is none."""
    known = ALIASES.get(name, name) if isinstance(name, str) else None
    if known not in ACTIVATIONS:
        raise UserError(
            f"{field} is {name!r:.80}, an activation that is not known here; there are {', '.join(ACTIVATIONS)}"
        )
    return known


def model_options(text: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ResNet` for this text; those in `given` come first, and are returned too.

    Raises:
        UserError: for an option or a value that is not known here.
    """
    options: dict[str, Any] = {}
    for name, value in text.items():
        if name not in _VALUES or not _VALUES[name](value):
            raise UserError(f"the weights need {name}={value!r}, which no network here has")
        if name in _DILATION and _DILATION & given.keys():
            continue
        if name == "activation":
            value = ACTIVATIONS[activation_named(value, "the activation of the weights")]
        options[name] = tuple(value) if isinstance(value, list) else value
    return options | dict(given)


def arithmetic_of(model: ResNet, architecture: str) -> dict[str, Any]:
    """The text for a model of an architecture: `model_options` of it makes another with the same arithmetic."""
    name = next((name for name, function in ACTIVATIONS.items() if function is model.activation), None)
    epsilon = getattr(model.bn1, "epsilon", None)
    found: dict[str, Any] = {
        "activation": name or getattr(model.activation, "__name__", "unknown"),
        "norm_epsilon": float(epsilon) if isinstance(epsilon, int | float) else 1e-5,
        **_dilation(model.dilated),
        "last_stride": model.last_stride,
        "stride_in_first_1x1": model.stride_in_first_1x1,
        "max_pool_ceil": model.stem.max_pool_ceil,
        "aa_layer": model.stem.aa_layer,
        "global_pool": model.global_pool,
    }
    plain = _plain(architecture)
    return {option: value for option, value in found.items() if plain.get(option) != value}


def _plain(architecture: str) -> dict[str, Any]:
    return {
        "activation": "relu",
        "norm_epsilon": 1e-5,
        "output_stride": 32,
        "last_stride": 2,
        "stride_in_first_1x1": False,
        "max_pool_ceil": False,
        "aa_layer": "",
        "global_pool": "avg",
    } | dict(get_architecture(architecture).options)


_ALTERNATIVES: dict[str, tuple[Any, ...]] = {
    "activation": ("relu", "silu", "gelu", "leaky_relu", "elu"),
    "max_pool_ceil": (False, True),
    "aa_layer": ("", "avg", "blur"),
    "stride_in_first_1x1": (False, True),
    "last_stride": (2, 1),
    "output_stride": (32, 16, 8),
    "norm_epsilon": (1e-5, 1e-3),
}
"""Values that networks in use have, of the options that the norms' statistics may show."""


def alternatives(architecture: str) -> dict[str, tuple[Any, ...]]:
    """{option: values other than the architecture's own} that weights of its shapes may need."""
    plain = _plain(architecture)
    return {option: tuple(v for v in values if v != plain[option]) for option, values in _ALTERNATIVES.items()}


def _dilation(dilated: tuple[bool, ...]) -> dict[str, Any]:
    for output_stride in (32, 16, 8):
        if dilated == tuple(8 * 2**number > output_stride for number in range(len(dilated))):
            return {"output_stride": output_stride}
    return {"replace_stride_with_dilation": list(dilated)}
