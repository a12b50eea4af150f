"""A model as a program that runs without this package."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from parity.conversion.files import write_whole
from resnet_flax.models import ResNet


def export_stablehlo(model: ResNet, path: Path, image_size: tuple[int, int]) -> None:
    """Writes the eval-mode model with its weights as a serialised `jax.export` artifact for CPU and CUDA.

    The program takes float32 images (N, *image_size, C) for any N, and returns logits (N, classes).

    Raises:
        ParityError: if the file cannot be written.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def logits(images):
        return nnx.merge(graph, state)(images)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_size, model.in_channels), jnp.float32)
    artifact = export.export(logits, platforms=("cpu", "cuda"))(images).serialize()
    write_whole(path, lambda temporary: temporary.write_bytes(artifact))
