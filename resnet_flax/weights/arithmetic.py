"""What no shape shows of a network: its activation, norms' epsilon and dilation, as text beside its weights.

The text is JSON, {option: value}, and holds only what differs from the architecture's own:

    activation: one of `ACTIVATIONS`.
    norm_epsilon: of every norm, in float64; 1e-5 by default.
    output_stride: 8 or 16 where the last stages dilate instead of striding; 32 by default.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.layers import BatchNorm, Conv
from resnet_flax.models import ResNet

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

_DILATED = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}


def activation_named(name: Any, field: str) -> str:
    """The name in `ACTIVATIONS` of what others call `name`; a UserError that names `field` if there is none."""
    known = ALIASES.get(name, name) if isinstance(name, str) else None
    if known not in ACTIVATIONS:
        raise UserError(
            f"{field} is {name!r}, an activation that is not known here; there are {', '.join(ACTIVATIONS)}"
        )
    return known


def model_options(text: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ResNet` for this text; those in `given` come first, and are returned too.

    Raises:
        UserError: for an option or a value that is not known here.
    """
    options: dict[str, Any] = {}
    for name, value in text.items():
        if name == "activation":
            options["activation"] = ACTIVATIONS[activation_named(value, "the activation of the weights")]
        elif name == "output_stride" and value in _DILATED:
            options["replace_stride_with_dilation"] = _DILATED[value]
        elif name == "norm_epsilon" and isinstance(value, float) and 0 <= value < 1:
            layer = given.get("norm_layer", BatchNorm)
            options["norm_layer"] = partial(layer, epsilon=value)
            given = {key: option for key, option in given.items() if key != "norm_layer"}
        else:
            raise UserError(f"the weights need {name}={value!r}, which no network here has")
    return options | dict(given)


def arithmetic_of(model: ResNet) -> dict[str, Any]:
    """The text for a model: `model_options` of it makes another with the same arithmetic."""
    text: dict[str, Any] = {}
    if model.activation is not nnx.relu:
        name = next((name for name, function in ACTIVATIONS.items() if function is model.activation), None)
        text["activation"] = name or getattr(model.activation, "__name__", "unknown")
    epsilon = getattr(model.bn1, "epsilon", None)
    if isinstance(epsilon, int | float) and epsilon != 1e-5:
        text["norm_epsilon"] = float(epsilon)
    strides = [_stride(getattr(model, f"layer{number}")[0]) for number in (2, 3, 4)]
    dilated = tuple(stride == 1 for stride in strides)
    output_stride = next((out for out, flags in _DILATED.items() if flags == dilated), 32)
    return text | ({"output_stride": output_stride} if output_stride != 32 else {})


def _stride(block: nnx.Module) -> int:
    return max((conv.strides[0] for _, conv in nnx.iter_modules(block) if isinstance(conv, Conv)), default=1)
