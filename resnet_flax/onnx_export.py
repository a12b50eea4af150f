"""A model as an ONNX file, made from its PyTorch twin.

The twin is the PyTorch original of the architecture, which the exact conversion fills with the model's own values. The
file then has what ONNX's tools expect of such networks: one Conv for each convolution in NCHW, norms as
BatchNormalization, MaxPool, and the parameters under torchvision's names.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parity.conversion.convert import to_torch
from parity.conversion.files import write_whole
from parity.errors import needs_extra
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet
from resnet_flax.models.options import ModelOptions
from resnet_flax.weights.arithmetic import arithmetic_of

Layout = Literal["NCHW", "NHWC"]
INPUT, OUTPUT = "images", "logits"
_WRAPPED = "network"  # the twin's name in what is exported


def export_onnx(
    model: ResNet,
    architecture: str,
    path: Path,
    image_size: tuple[int, int],
    *,
    opset: int = 17,
    batch: int | None = None,
    layout: Layout = "NCHW",
    preprocessing: Preprocessing | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the eval-mode model with its weights: "images" (N, C, H, W) -> float32 "logits" (N, classes).

    The initializers have torchvision's names, and the value that each module gives has its path.

    Args:
        image_size: height and width of the images.
        opset: version of ONNX's operators.
        batch: N; None for any.
        layout: of the images; "NHWC" transposes them inside.
        preprocessing: with it the images are uint8, and are divided by 255 and normalised inside; else float32.
        metadata: kept in the file, with the layout.

    Raises:
        MissingPackageError: without the packages of the extra "onnx".
        UserError: if PyTorch has no such network.
        ParityError: if the file cannot be written.
    """
    with needs_extra("onnx", "exporting to ONNX"):
        import onnx
        import torch
    exported = _wrapped(torch_twin(model, architecture), layout, preprocessing)
    height, width = image_size
    sizes = (height, width, model.in_channels) if layout == "NHWC" else (model.in_channels, height, width)
    example = torch.zeros((batch or 2, *sizes), dtype=torch.float32 if preprocessing is None else torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is older than PyTorch's default
        torch.onnx.export(
            exported,
            (example,),
            Path(folder) / "model.onnx",
            # The default one gives each convolution a bias of zeros, or folds the norms into the convolutions, which
            # rounds once more; and a global pool is followed by a gather.
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps the norms, as above
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=None if batch else {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
        proto = onnx.load(Path(folder) / "model.onnx")
    _name_values(proto.graph, [path for path, _ in exported.named_modules()])
    onnx.helper.set_model_props(proto, {**(metadata or {}), "layout": layout})
    proto.doc_string = f"{architecture}, exported by resnet_flax"
    onnx.checker.check_model(proto)
    write_whole(path, lambda temporary: temporary.write_bytes(proto.SerializeToString()))


def torch_twin(model: ResNet, architecture: str) -> Any:
    """The PyTorch original of the architecture with the model's values, in eval mode.

    Raises:
        UserError: if it lacks an option that the model has.
    """
    from resnet_flax.models.originals import torch_network

    options = arithmetic_of(model, architecture)
    known = ModelOptions.__dataclass_fields__
    if lacking := {name: value for name, value in options.items() if name not in known}:
        needed = ", ".join(f"{name}={value}" for name, value in lacking.items())
        raise UserError(f"the model has {needed}, which PyTorch's {architecture} lacks; use a .stablehlo file")
    import torch

    twin = torch_network(
        architecture,
        num_classes=model.num_classes or 1,
        in_channels=model.in_channels,
        small_images=model.small_images,
        options=ModelOptions(**options),
    )
    if not model.num_classes:
        twin.fc = torch.nn.Identity()
    twin.load_state_dict({name: torch.tensor(np.array(value)) for name, value in to_torch(model).items()})
    return twin.float().eval()


def _wrapped(twin: Any, layout: Layout, preprocessing: Preprocessing | None) -> Any:
    import torch

    class Exported(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self):
            super().__init__()
            self.add_module(_WRAPPED, twin)
            if preprocessing is not None:
                for name in ("mean", "std"):
                    values = torch.tensor(getattr(preprocessing, name)).reshape(-1, 1, 1)
                    self.register_buffer(name, values, persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images = images.permute(0, 3, 1, 2) if layout == "NHWC" else images
            if preprocessing is not None:
                images = (images.float() / 255 - self.mean) / self.std
            return twin(images)

    return Exported().eval()


def _name_values(graph: Any, modules: Sequence[str]) -> None:
    """Gives the initializers the parameters' names, and the last value that a module computes the module's path."""
    new = {one.name: one.name.removeprefix(f"{_WRAPPED}.") for one in graph.initializer}
    last: dict[str, str] = {}
    for node in graph.node:
        value = node.output[0]
        last |= dict.fromkeys((path for path in _scopes(value) if path in modules and path != _WRAPPED), value)
    new |= {value: path.removeprefix(f"{_WRAPPED}.") for path, value in last.items() if value not in (INPUT, OUTPUT)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for one in (*graph.initializer, *graph.value_info):
        one.name = new.get(one.name, one.name)


def _scopes(value: str) -> list[str]:
    """The modules around the node that gives a value, as paths: layer1, layer1.0 and layer1.0.conv1 for what
    torch.onnx calls /layer1/layer1.0/conv1/Conv_output_0; a module's second call has a suffix, and no path."""
    paths, before = [], ""
    for scope in value.split("/")[1:-1]:
        is_item = before and scope.startswith(f"{before}.")  # of a Sequential
        tail = scope.removeprefix(before) if is_item else f".{scope}"
        paths.append(f"{paths[-1]}{tail}" if paths else scope)
        before = scope
    return paths
