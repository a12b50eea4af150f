"""A model as an ONNX file, made from its PyTorch twin.

The twin is the PyTorch original of the architecture, which the exact conversion fills with the model's own values. The
file then has what ONNX's tools expect of such networks: one Conv for each convolution in NCHW, norms as
BatchNormalization, MaxPool, and the parameters under torchvision's names.
"""

import ast
import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
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
    opset: int = 18,
    batch: int | None = None,
    layout: Layout = "NCHW",
    preprocessing: Preprocessing | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the eval-mode model with its weights: "images" (N, C, H, W) -> float32 "logits" (N, classes).

    The initializers have torchvision's names, and the output of each module that is called once its path.

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
        import onnxscript  # noqa: F401 - torch.onnx imports it when it exports
        import torch
    twin = torch_twin(model, architecture)
    height, width = image_size
    count = 2 if batch is None else batch  # an example of one would fix the batch
    shape = (count, height, width, model.in_channels)
    shape = shape if layout == "NHWC" else (count, model.in_channels, height, width)
    example = torch.zeros(shape, dtype=torch.float32 if preprocessing is None else torch.uint8)
    dynamic = None if batch is not None else ({0: torch.export.Dim("batch", min=1)},)
    with _quiet():
        program = torch.onnx.export(
            _wrapped(twin, layout, preprocessing),
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=dynamic,
            optimize=False,  # which would fold the norms into the convolutions, and round once more
            verbose=False,
        )
    proto = program.model_proto
    _name_values(proto.graph)
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


def _name_values(graph: Any) -> None:
    """Gives the initializers the parameters' names, and the last value of each module that is called once its path."""
    new = {one.name: one.name.removeprefix(f"{_WRAPPED}.") for one in graph.initializer}
    for path, value in _outputs_of_modules(graph).items():
        if value not in (INPUT, OUTPUT) and path not in new.values():
            new[value] = path
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for one in (*graph.initializer, *graph.value_info):
        one.name = new.get(one.name, one.name)


def _outputs_of_modules(graph: Any) -> dict[str, str]:
    """{module's path: the value that its last node gives}, by the scopes that torch.onnx writes beside each node."""
    last: dict[str, str] = {}
    closed: set[str] = set()
    several: set[str] = set()
    open_now: set[str] = set()
    for node in graph.node:
        text = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "[]")
        scopes = [scope.removeprefix(f"{_WRAPPED}.") for scope in ast.literal_eval(text)[:-1]]
        inside = {scope for scope in scopes if scope not in ("", _WRAPPED)}
        closed |= open_now - inside
        several |= inside & closed
        open_now = inside
        last |= dict.fromkeys(inside, node.output[0])
    return {path: value for path, value in last.items() if path not in several}


@contextmanager
def _quiet() -> Generator[None]:
    """Without torch.onnx's progress and the warnings of the packages that it imports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
