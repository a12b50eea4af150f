"""Test-time augmentation: several views of each image, whose probabilities are averaged."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_flax.data.transforms import EvaluationTransform
from resnet_flax.errors import UserError
from resnet_flax.training.step import Forward

VIEWS = {
    "none": "one view",
    "flip": "the image and its mirror image",
    "five_crop": "four corners and the centre",
    "ten_crop": "four corners, the centre, and the mirror image of each",
}


class Crops:
    """The corners and the centre of an image as torchvision's `FiveCrop`, after the same resizing: uint8 (5, H, W, C).

    Args:
        transform: whose `crop_size` is the side of the crops.
    """

    def __init__(self, transform: EvaluationTransform):
        if transform.crop_size is None:
            raise UserError("--tta of crops needs --eval-transform.crop-size, the side of the crops")
        self.transform, self.size = transform, transform.crop_size

    def __call__(self, image: Image.Image | np.ndarray, rng: object = None) -> np.ndarray:
        whole = replace(self.transform, crop_size=None)(image)
        height, width = whole.shape[:2]
        size = self.size
        if min(height, width) < size:
            raise UserError(
                f"an image of {height}x{width} pixels has no crops of {size}x{size} for --tta; raise "
                "--eval-transform.resize-size"
            )
        bottom, right = height - size, width - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
        return np.stack([whole[top : top + size, left : left + size] for top, left in corners])


def averaged(forward: Forward, tta: str) -> Forward:
    """(model, images) -> log of the mean of the views' probabilities, (N, classes), which serve as logits.

    Args:
        forward: (model, images (N, H, W, C)) -> logits (N, classes).
        tta: of `VIEWS`. For crops, images are (N, 5, H, W, C), as `Crops` makes them.
    """
    if tta == "none":
        return forward

    def average(model, images: jax.Array) -> jax.Array:
        views = jnp.moveaxis(images, 1, 0) if tta.endswith("crop") else images[None]
        if tta in ("flip", "ten_crop"):
            views = jnp.concatenate([views, views[..., ::-1, :]])

        def log_probabilities(view: jax.Array) -> jax.Array:
            logits = forward(model, view)
            return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

        # One view after the other, so that memory is that of one.
        each = jax.lax.map(log_probabilities, views)
        return jax.nn.logsumexp(each, axis=0) - jnp.log(len(views))

    return average
