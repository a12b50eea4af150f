"""The convolution's fast forms against XLA's own, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.layers.conv_gradients import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")

# height, width, channels, features, kernel, stride, padding, dilation, groups
SHAPES = [
    (8, 7, 3, 4, 3, 1, 1, 1, 1),
    (9, 8, 4, 6, 3, 2, 1, 1, 2),
    (7, 9, 3, 5, 1, 2, 0, 1, 1),
    (9, 10, 3, 5, 7, 2, 3, 1, 1),
    (10, 11, 4, 4, 3, 1, 2, 2, 1),
    (8, 8, 4, 8, 3, 1, 1, 1, 4),
    (9, 8, 2, 2, 4, 3, 1, 1, 1),
]


def _case(shape, dtype=np.float64):
    height, width, channels, features, k, stride, padding, dilation, groups = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, channels)).astype(dtype)
    kernel = rng.normal(size=(k, k, channels // groups, features)).astype(dtype)
    options = {
        "window_strides": (stride, stride),
        "padding": ((padding, padding), (padding, padding)),
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": LAYOUT,
        "feature_group_count": groups,
    }
    return x, kernel, options


def _derivatives(conv, options):
    """Output, both gradients, a tangent, second derivatives, per-example kernel gradients."""

    def f(x, kernel):
        return conv(x, kernel, **options)

    def squares(x, kernel):
        return jnp.sin(f(x, kernel)).sum()

    def gradient_norm(x, kernel):
        return sum(jnp.sin(g).sum() for g in jax.grad(squares, (0, 1))(x, kernel))

    def run(x, kernel):
        return (
            f(x, kernel),
            jax.grad(squares, (0, 1))(x, kernel),
            jax.jvp(f, (x, kernel), (x * 0.3, kernel * 0.7))[1],
            jax.grad(gradient_norm, (0, 1))(x, kernel),
            jax.vmap(jax.grad(lambda kernel, x: squares(x[None], kernel)), (None, 0))(kernel, x),
        )

    return jax.jit(run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_xla_in_float64(shape):
    with jax.enable_x64(True):
        x, kernel, options = _case(shape)
        ours = _derivatives(conv_general_dilated, options)(x, kernel)
        xla = _derivatives(jax.lax.conv_general_dilated, options)(x, kernel)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(xla), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
