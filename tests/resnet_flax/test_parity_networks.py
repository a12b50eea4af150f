"""The networks themselves: three small ones by default, every one at full depth under the marker `full`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from flax import nnx

import parity
from parity.errors import ParityError
from parity.networks import family_of, named_pair
from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, Residual, ResNet, build_model
from resnet_flax.models.originals import ResidualNet
from resnet_flax.models.shortcuts import BareConvolution
from resnet_flax.parity_networks import Options
from resnet_flax.training.trajectory import digit_batches, train
from resnet_flax.weights.entries import entries

CHECKS = ("weights", "forward", "activations", "gradients", "batch_stats", "optimizer")


def shallow(block, theirs, **options):
    """One block a stage; the widths are those of the full network."""
    ours = nnx.eval_shape(lambda: ResNet(block, (1, 1, 1, 1), num_classes=10, rngs=nnx.Rngs(0), **options))
    parity.randomize(ours, theirs)
    return ours, theirs


def basic():
    blocks = torchvision.models.resnet
    return shallow(BasicBlock, blocks.ResNet(blocks.BasicBlock, [1, 1, 1, 1], num_classes=10))


def resnext():
    blocks = torchvision.models.resnet
    shape = {"groups": 8, "width_per_group": 4}
    return shallow(Bottleneck, blocks.ResNet(blocks.Bottleneck, [1, 1, 1, 1], num_classes=10, **shape), **shape)


def residual():
    theirs = ResidualNet(shortcut_kernel=3)
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        del stage[1]
    # The first stage keeps its shape, so its only block has no shortcut convolution on either side.
    return shallow(Residual, theirs, in_channels=1, shortcut=BareConvolution(3), conv_bias=True)


@pytest.mark.parametrize(
    ("build", "checks"),
    [(basic, CHECKS), (resnext, CHECKS[:4]), (residual, CHECKS[:4])],
    ids=["basic", "resnext", "residual"],
)
def test_small_networks_agree(build, checks):
    ours, theirs = build()
    channels = theirs.conv1.in_channels
    report = parity.check(
        ours, theirs, parity.random_inputs((2, 33, 24, channels)), np.arange(2), checks=checks, steps=1
    )
    assert report.passed, str(report)


@pytest.mark.full
@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_agrees_in_everything(name, size):
    pair = named_pair(name)
    ours, theirs = pair.flax_model, pair.torch_model
    inputs = parity.random_inputs((4, size, size, pair.channels))
    report = parity.check(ours, theirs, inputs, np.arange(4), checks=CHECKS)
    assert report.passed, str(report)
    adamw = parity.Optimizer("adamw", 1e-3)
    report = parity.check(ours, theirs, inputs, np.arange(4), checks=("optimizer",), optimizer=adamw)
    assert report.passed, str(report)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "optimizer", "steps"),
    [
        ("resnet18", parity.Optimizer("sgd", lambda step: 0.05 * min((step + 1) / 10, 1 - step / 100)), 100),
        ("residual18", parity.Optimizer("adam", lambda step: 1e-3, weight_decay=0.0), 50),
    ],
)
def test_trajectories_agree(name, optimizer, steps):
    """The project's own training step against PyTorch's loop, on digits."""
    small = name == "resnet18"
    pair = named_pair(name, small_images=small)
    ours, theirs = pair.flax_model, pair.torch_model
    batches = digit_batches(steps, 16, 8 if small else 32, pair.channels)
    report = parity.check(
        ours,
        theirs,
        batches[0][0],
        batches[0][1],
        checks=("trajectory",),
        optimizer=optimizer,
        batches=batches,
        train=train,
    )
    assert report.passed, str(report)


def test_an_alias_is_a_name():
    assert family_of("residual18_xavier").pair("residual18_xavier", Options()).channels == 1


def test_weights_of_another_network_are_named():
    shapes = entries("resnet34")
    state_dict = {f"module.{name}": np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    model = nnx.eval_shape(lambda: build_model("resnet18", rngs=nnx.Rngs(0)))
    with pytest.raises(ParityError, match="it has the shapes of resnet34, 1000 classes, .* those of resnet18, 1000 cl"):
        parity.to_flax(state_dict, model)
