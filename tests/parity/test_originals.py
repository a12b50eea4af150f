"""Another's network against a small twin written here: torchvision's ConvNeXt."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import parity

CHECKS = ("forward", "activations", "gradients")
IMAGES = parity.random_inputs((2, 16, 24, 3))


def norm(width, epsilon=1e-6):
    return nnx.LayerNorm(width, epsilon=epsilon, rngs=nnx.Rngs(0))


def conv(before, after, size, **options):
    return nnx.Conv(before, after, (size, size), rngs=nnx.Rngs(0), **options)


def linear(before, after):
    return nnx.Linear(before, after, rngs=nnx.Rngs(0))


class Block(nnx.Module):
    def __init__(self, width, approximate):
        self.depthwise = conv(width, width, 7, padding=3, feature_group_count=width)
        self.norm, self.expand, self.reduce = norm(width), linear(width, 4 * width), linear(4 * width, width)
        self.scale, self.approximate = nnx.Param(jnp.ones(width)), approximate

    def __call__(self, x):
        y = self.expand(self.norm(self.depthwise(x)))
        return x + self.reduce(nnx.gelu(y, approximate=self.approximate)) * self.scale[...].reshape(1, 1, 1, -1)


@parity.register_layer(Block)
def _block(module):
    return {"scale": parity.LeafRule("layer_scale", np.ravel, lambda scale: np.reshape(scale, (-1, 1, 1)))}


class Twin(nnx.Module):
    """ConvNeXt of two stages."""

    def __init__(self, *, approximate=False, epsilon=1e-6):
        self.stem, self.stem_norm = conv(3, 8, 4, strides=4, padding="VALID"), norm(8, epsilon)
        self.first, self.last = Block(8, approximate), Block(16, approximate)
        self.down_norm, self.down = norm(8), conv(8, 16, 2, strides=2, padding="VALID")
        self.head_norm, self.head = norm(16), linear(16, 3)

    def __call__(self, x):
        x = self.first(self.stem_norm(self.stem(x)))
        x = self.last(self.down(self.down_norm(x)))
        return self.head(self.head_norm(x.mean((1, 2))))


def convnext(**faults):
    original = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)
    parity.randomize(None, original)
    twin = Twin(**faults)
    names = parity.match_names(twin, original, inputs=IMAGES)
    return parity.to_flax(original.state_dict(), twin, names=names), original, names


@pytest.mark.full
def test_convnext_agrees_without_a_line_of_names():
    twin, original, names = convnext()
    assert names["first.expand"] == "features.1.0.block.3"
    report = parity.check(twin, original, IMAGES, names=names, checks=CHECKS)
    assert report.passed, str(report)
    assert "features.3.0.layer_scale" in {row.name for row in report.of("gradients")}


def test_faults_of_a_convnext_are_named_in_both_blocks():
    twin, original, names = convnext(approximate=True, epsilon=1e-5)
    report = parity.check(twin, original, IMAGES, names=names, checks=CHECKS[:2])
    causes = [finding.cause for finding in report.findings]
    assert sum("GELU by tanh is applied where PyTorch applies GELU by erf" in cause for cause in causes) == 2
    assert any("epsilon of features.0.1 is 1e-05, PyTorch's is 1e-06" in cause for cause in causes)
