"""The ResNet family in JAX/Flax NNX with PyTorch weight parity.

Everything is loaded when it is first used, so that a command can answer before JAX has been imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_flax.errors import UserError
    from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, Residual, ResNet
    from resnet_flax.weights.load import Pretrained, create_model, load_pretrained

__all__ = [
    "ARCHITECTURES",
    "BasicBlock",
    "Bottleneck",
    "Pretrained",
    "ResNet",
    "Residual",
    "UserError",
    "create_model",
    "load_pretrained",
]

_MODULES = {
    "errors": ("UserError",),
    "models": ("ARCHITECTURES", "BasicBlock", "Bottleneck", "Residual", "ResNet"),
    "weights.load": ("Pretrained", "create_model", "load_pretrained"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'resnet_flax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnet_flax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
