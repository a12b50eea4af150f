"""What is not images for a network gets a sentence; what may be wrong gets a warning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_flax.errors import UserError
from resnet_flax.models.images import require_images


@pytest.mark.parametrize(
    ("shape", "channels", "sentence"),
    [
        (
            (1, 3, 224, 224),
            3,
            r"got \(1, 3, 224, 224\), which looks like PyTorch's \(N, C, H, W\); images.transp",
        ),
        ((5, 1, 28, 30), 1, "which looks like PyTorch's"),
        ((7, 4, 9, 9), 4, "which looks like PyTorch's"),
        ((224, 200, 3), 3, r"one image \(H, W, C\) without the batch axis; images\[None\]"),
        ((3, 224, 200), 3, r"PyTorch's \(C, H, W\); images.transpose\(1, 2, 0\)\[None\]"),
        ((28, 28), 1, r"images\[None, :, :, None\]"),
        ((2, 32, 32, 4), 3, r"takes 3 channels; create_model\(..., in_channels=4\)"),
        ((2, 32, 32, 3), 1, r"takes 1 channel; create_model\(..., in_channels=3\)"),
        ((2, 5, 32, 32, 3), 3, r"the network takes \(N, H, W, 3\)"),
        ((150_528,), 3, r"the network takes \(N, H, W, 3\)"),
    ],
)
def test_other_shapes(shape, channels, sentence):
    with pytest.raises(UserError, match=sentence):
        require_images(jax.ShapeDtypeStruct(shape, jnp.float32), channels)


def test_the_shape_that_could_be_either_is_taken():
    images = np.zeros((2, 3, 5, 3), np.float32)
    assert require_images(images, 3).shape == images.shape


@pytest.mark.parametrize("images", [[np.zeros((8, 8, 3), np.float32)], Image.new("RGB", (8, 8)), None, "cat.jpg"])
def test_what_is_no_array(images):
    with pytest.raises(UserError, match="images are one array"):
        require_images(images, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_pixels_are_refused(dtype):
    with pytest.raises(UserError, match=r"images are normalised floats; got .*normalize\(images, mean, std\)"):
        require_images(np.ones((1, 4, 4, 3), dtype), 3)


def test_images_that_a_compiled_function_closes_over_are_looked_at():
    pixels = jnp.full((1, 4, 4, 3), 200.0)
    with pytest.warns(UserWarning, match="images have values from 200 to 200"):
        jax.jit(lambda: require_images(pixels, 3))()


def test_values_of_pixels_are_a_warning():
    pixels = np.full((1, 4, 4, 3), 200.0, np.float32)
    with pytest.warns(UserWarning, match="images have values from 200 to 200 and are taken as they are"):
        require_images(pixels, 3)
    caffe = pixels - np.linspace(100, 300, 3, dtype=np.float32)  # which normalises without a standard deviation
    for images in (pixels / 255, caffe, np.zeros((0, 4, 4, 3), np.float32)):
        require_images(images, 3)  # a warning is an error here
    jax.jit(lambda images: require_images(images, 3))(pixels)  # whose values are not known when it is compiled
