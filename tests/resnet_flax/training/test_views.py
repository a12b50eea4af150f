"""Test-time augmentation: the crops of torchvision, and the mean of the views' probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_flax.data import EvaluationTransform
from resnet_flax.errors import UserError
from resnet_flax.training.views import VIEWS, Crops, averaged

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(40, 57), (33, 30), (30, 30), (31, 64)])
@pytest.mark.parametrize("crop", [24, 25])
def test_crops_are_torchvisions(shape, crop):
    transforms = pytest.importorskip("torchvision.transforms")
    image = RANDOM.integers(0, 256, (*shape, 3), np.uint8)
    theirs = transforms.Compose(
        [transforms.Resize(27, transforms.InterpolationMode.BILINEAR), transforms.FiveCrop(crop)]
    )(Image.fromarray(image))
    ours = Crops(EvaluationTransform(27, crop))(image)
    np.testing.assert_array_equal(ours, np.stack([np.asarray(view) for view in theirs]))
    np.testing.assert_array_equal(ours[4], EvaluationTransform(27, crop)(image))


def test_images_without_room_for_crops_are_refused():
    with pytest.raises(UserError, match="an image of 20x30 pixels has no crops of 24x24 for --tta; raise"):
        Crops(EvaluationTransform(None, 24))(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(UserError, match="needs --eval-transform.crop-size"):
        Crops(EvaluationTransform(24, None))


@pytest.mark.parametrize("tta", VIEWS)
def test_probabilities_are_averaged(tta):
    with jax.enable_x64(True):
        weights = jnp.asarray(RANDOM.normal(size=(4 * 5 * 2, 3)))
        images = RANDOM.normal(size=(6, 5, 4, 5, 2) if "crop" in tta else (6, 4, 5, 2))
        found = averaged(lambda model, x: x.reshape(len(x), -1) @ model, tta)(weights, jnp.asarray(images))
        views = [images[:, view] for view in range(5)] if "crop" in tta else [images]
        views += [view[:, :, ::-1] for view in views] if tta in ("flip", "ten_crop") else []
        mean = np.mean([jax.nn.softmax(view.reshape(6, -1) @ weights) for view in views], 0)
        np.testing.assert_allclose(jax.nn.softmax(found), mean, rtol=1e-13)
        assert len(views) == {"none": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}[tta]
