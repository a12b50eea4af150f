"""A network as a table: its layers, the shapes of their outputs, their parameters and multiply-accumulates."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resnet_flax.layers import Sequential
from resnet_flax.models.resnet import ResNet


@dataclass(frozen=True)
class Row:
    """One layer or block.

    Attributes:
        name, kind: its path, and its class.
        output: the shape of its output for one image, without the batch.
        parameters: their number, without running statistics.
        multiply_accumulates: of its convolutions and linear layers, counted as in `resnet_flax.models.cost`.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_accumulates: int


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` found; printing shows a table.

    Attributes:
        name: the network's class.
        image: (height, width, channels).
        rows: in the order of computation.
    """

    name: str
    image: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_accumulates(self) -> int:
        return sum(row.multiply_accumulates for row in self.rows)

    def __repr__(self) -> str:
        cells = [("layer", "kind", "output", "parameters", "GMACs")]
        cells += [
            (row.name, row.kind, _sizes(row.output), f"{row.parameters:,}", _giga(row.multiply_accumulates))
            for row in self.rows
        ]
        cells += [("total", "", "", f"{self.parameters:,}", _giga(self.multiply_accumulates))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index > 2 else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        return "\n".join([f"{self.name} on one image {_sizes(self.image)}", *lines])


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _giga(count: int) -> str:
    return f"{count / 1e9:.3f}" if count else ""


def summary(model: ResNet, image_size: int | tuple[int, int] | None = None) -> Summary:
    """The layers of a network on an image of `image_size` pixels; nothing is computed.

    Args:
        model: it is left as it is, and may be abstract (`nnx.eval_shape`).
        image_size: the side, or (height, width); by default 224, or 32 with the stem for small images.

    Examples:
        >>> import resnet_flax
        >>> table = resnet_flax.summary(resnet_flax.create_model("resnet18"))
        >>> table.parameters
        11689512
    """
    size = image_size or (32 if model.small_images else 224)
    height, width = (size, size) if isinstance(size, int) else size
    image = (height, width, model.in_channels)
    graph, state = nnx.split(model)
    shapes: dict[str, tuple[int, ...]] = {}
    kernels: dict[str, int] = {}

    def forward(state: Any, images: jax.Array) -> jax.Array:
        copy = nnx.merge(graph, state)
        copy.eval()
        modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(copy)}
        for name, module in sorted(modules.items(), key=lambda item: -item[0].count(".")):  # parts before the whole
            if isinstance(kernel := getattr(module, "kernel", None), nnx.Variable):
                kernels[name] = math.prod(kernel.shape)
            if name and (name in kernels or name in rows):
                _replace(copy, name, _noting(module, name, shapes))
        return copy(images)

    rows = dict(_rows(model))
    jax.eval_shape(forward, state, jax.ShapeDtypeStruct((1, *image), jnp.float32))
    products = {name: size * math.prod(shapes[name][1:-1]) for name, size in kernels.items()}
    found = []
    for name, module in rows.items():
        parameters = jax.tree.leaves(nnx.state(module, nnx.Param))
        inside = sum(count for path, count in products.items() if path == name or path.startswith(f"{name}."))
        found.append(Row(name, type(module).__name__, shapes[name][1:], sum(x.size for x in parameters), inside))
    return Summary(type(model).__name__, image, tuple(found))


def _rows(model: ResNet) -> Iterator[tuple[str, nnx.Module]]:
    """(path, module) of the layers and blocks that have parameters, in the order of computation."""
    for name in ("conv1", "bn1", "maxpool", *model.stages, "fc"):
        module = getattr(model, name)
        parts = enumerate(module) if isinstance(module, Sequential) else [(None, module)]
        for index, part in parts:
            if part is not None and jax.tree.leaves(nnx.state(part, nnx.Param)):
                yield (name if index is None else f"{name}.{index}"), part


def _noting(layer: Callable[..., jax.Array], name: str, shapes: dict[str, tuple[int, ...]]) -> Callable[..., jax.Array]:
    def call(*args: Any, **options: Any) -> jax.Array:
        output = layer(*args, **options)
        shapes[name] = output.shape
        return output

    return call


def _replace(model: Any, path: str, layer: Callable[..., jax.Array]) -> None:
    """Puts `layer` where the module of that dotted path is."""
    *parents, last = path.split(".")
    for part in parents:
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    if last.isdigit():
        model[int(last)] = layer
    else:
        setattr(model, last, layer)
