"""The ResNet family in JAX/Flax NNX, with PyTorch's weights and arithmetic.

A trained network, from its name or a file, and what it sees in an image:

    import resnet_flax

    pretrained = resnet_flax.load_pretrained("resnet50", "DEFAULT")   # or a .pth, .safetensors, hf-hub:timm/...
    print(pretrained.predict("cat.jpg"))

A network of your own, in a loop of your own:

    model = resnet_flax.create_model("resnet50", weights="DEFAULT", num_classes=4)
    logits = model(images)                                            # normalised floats (N, H, W, C), not NCHW
    pyramid = model.features(images, taps=("layer1", "layer2", "layer3", "layer4"))

Or in ours, with the recipes, checkpoints and curves of `python train.py`:

    result = resnet_flax.fit(data="folder:images", recipe="finetune", epochs=5)
    resnet_flax.evaluate(result.best, "folder:images")

`list_models("resnet*d")` has the names and `summary(model)` the layers. Everything is loaded when it is first used, so
that a command can answer before JAX has been imported.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_flax.errors import UserError
    from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, Residual, ResNet, list_models, summary
    from resnet_flax.training.fit import Result, evaluate, fit
    from resnet_flax.weights.load import create_model, load_pretrained
    from resnet_flax.weights.pretrained import Predictions, Pretrained

    __version__: str

__all__ = [
    "ARCHITECTURES",
    "BasicBlock",
    "Bottleneck",
    "Predictions",
    "Pretrained",
    "ResNet",
    "Residual",
    "Result",
    "UserError",
    "create_model",
    "evaluate",
    "fit",
    "list_models",
    "load_pretrained",
    "summary",
]

_MODULES = {
    "errors": ("UserError",),
    "models": ("ARCHITECTURES", "BasicBlock", "Bottleneck", "ResNet", "Residual", "list_models", "summary"),
    "training.fit": ("Result", "evaluate", "fit"),
    "weights.load": ("create_model", "load_pretrained"),
    "weights.pretrained": ("Predictions", "Pretrained"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_SUBPACKAGES = ("data", "layers", "models", "training", "weights")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"resnet_flax.{name}")
    if name == "__version__":
        return importlib.metadata.version("resnet-flax")
    if name not in _HOME:
        raise AttributeError(f"module 'resnet_flax' has no attribute {name!r}")
    module = _HOME[name]
    if not module.startswith("training"):
        return getattr(importlib.import_module(f"resnet_flax.{module}"), name)
    from parity.errors import needs_extra

    with needs_extra("train", f"resnet_flax.{name}"):
        return getattr(importlib.import_module(f"resnet_flax.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, "__doc__", "__version__"])
