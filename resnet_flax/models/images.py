"""The images that a network takes: (N, H, W, C), normalised floats; anything else gets a sentence, not XLA's."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from resnet_flax.errors import UserError

LARGEST_NORMALISED = 16  # (1 - 0) / std is below 5 for every published std; pixels reach 255


def require_images(images: ArrayLike, channels: int) -> jax.Array:
    """The images as an array; nonnegative values beyond those of normalised images are taken with a warning.

    Raises:
        UserError: unless they are floats of shape (N, H, W, `channels`).
    """
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise UserError(
            f"images are one array (N, H, W, {channels}), not a {type(images).__name__}; numpy.stack makes one of "
            "several images (H, W, C), numpy.asarray(image)[None] of one"
        )
    shape = tuple(np.shape(images))
    if mistake := _mistake_in(shape, channels):
        raise UserError(f"images are (N, H, W, C); got {shape}, {mistake}")
    array = jnp.asarray(images)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"images are normalised floats; got {array.dtype}: resnet_flax.data.normalize(images, mean, std) turns "
            "pixels from 0 to 255 into them, and Pretrained.predict(images) takes pixels"
        )
    if not isinstance(array, Tracer) and array.is_fully_addressable and array.size:
        with jax.ensure_compile_time_eval():  # images that a compiled function closes over
            lowest, highest = float(array.min()), float(array.max())
        if lowest >= 0 and highest > LARGEST_NORMALISED:
            warnings.warn(
                f"images have values from {lowest:.4g} to {highest:.4g} and are taken as they are, although weights "
                "were trained on normalised ones: resnet_flax.data.normalize(images, mean, std) makes them of pixels",
                stacklevel=4,
            )
    return array


def _mistake_in(shape: tuple[int, ...], channels: int) -> str:
    """What is wrong with the shape of images, and what to do; "" for (N, H, W, channels)."""
    match shape:
        case (_, _, _, last) if last == channels:
            return ""
        case (_, first, _, _) if first == channels:
            return "which looks like PyTorch's (N, C, H, W); images.transpose(0, 2, 3, 1) puts the channels last"
        case (_, _, last) if last == channels:
            return "which looks like one image (H, W, C) without the batch axis; images[None] adds it"
        case (first, _, _) if first == channels:
            return "which looks like PyTorch's (C, H, W); images.transpose(1, 2, 0)[None] gives (1, H, W, C)"
        case (_, _) if channels == 1:
            return "which looks like one grey image (H, W); images[None, :, :, None] gives (1, H, W, 1)"
        case (_, _, _, last):
            plural = "s" if channels != 1 else ""
            return f"and the network takes {channels} channel{plural}; create_model(..., in_channels={last}) adapts one"
    return f"and the network takes (N, H, W, {channels})"
