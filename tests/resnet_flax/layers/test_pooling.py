"""The max-pool's gradient against PyTorch's: ties, signs, odd sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.layers import max_pool

torch = pytest.importorskip("torch", reason="compares with PyTorch")

# height, width, window, stride, padding
SHAPES = [(8, 9, 3, 2, 1), (7, 7, 3, 2, 1), (9, 8, 2, 2, 0), (10, 7, 3, 1, 1), (9, 9, 3, 3, 0), (11, 10, 5, 2, 2)]


def _images(height, width):
    """Few different values, so that most windows have ties; all negative in one channel, as no ReLU would give."""
    images = np.random.default_rng(0).integers(-2, 3, (2, height, width, 3)).astype(np.float32)
    images[..., 0] -= 5
    return images


@pytest.mark.parametrize(("height", "width", "window", "stride", "padding"), SHAPES)
def test_gradient_goes_where_pytorch_sends_it(height, width, window, stride, padding):
    images = _images(height, width)
    y, pullback = jax.vjp(jax.jit(lambda x: max_pool(x, window, stride=stride, padding=padding)), images)
    # Whole numbers, whose sums are exact in whatever order they are added.
    weights = np.random.default_rng(1).integers(-(2**16), 2**16, y.shape).astype(np.float32)
    (gradient,) = pullback(jnp.asarray(weights))

    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, window, stride, padding)
    pooled.backward(torch.from_numpy(weights.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_array_equal(y, pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.unoptimized
def test_transformations_agree_with_each_other():
    with jax.enable_x64(True):
        images = np.random.default_rng(0).normal(size=(2, 7, 8, 3))
        tangent = np.random.default_rng(1).normal(size=images.shape)

        def pool(x):
            return jnp.sin(max_pool(x, 3, stride=2, padding=1)).sum()

        gradient = jax.jit(jax.grad(pool))(images)
        np.testing.assert_allclose(jax.jvp(pool, (images,), (tangent,))[1], (gradient * tangent).sum(), rtol=1e-12)
        each = jax.vmap(jax.grad(lambda image: pool(image[None])))(images)
        np.testing.assert_allclose(each, gradient, rtol=1e-12)
        step = 1e-6
        difference = (jax.grad(pool)(images + step * tangent) - jax.grad(pool)(images - step * tangent)) / (2 * step)
        second = jax.jvp(jax.grad(pool), (images,), (tangent,))[1]
        np.testing.assert_allclose(second, difference, rtol=0, atol=1e-7)
