"""Your own network against its PyTorch original, under pytest.

pytest docs/examples/test_own_cnn.py --parity-report=reports
"""

import pytest
from flax import nnx

import parity
from resnet_flax.layers import BatchNorm

torch = pytest.importorskip("torch", reason="compares with PyTorch")


class TorchCNN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.bn2 = torch.nn.BatchNorm2d(16)
        self.head = torch.nn.Linear(16 * 4 * 4, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(torch.nn.functional.max_pool2d(x, 2).flatten(1))


class FlaxCNN(nnx.Module):
    def __init__(self, *, rngs, padding=((1, 1), (1, 1))):
        self.conv1 = nnx.Conv(3, 8, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.bn1 = BatchNorm(8, rngs=rngs)  # PyTorch's running variance; nnx.BatchNorm keeps another
        self.conv2 = nnx.Conv(8, 16, (3, 3), padding=padding, rngs=rngs)
        self.bn2 = BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16 * 4 * 4, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.transpose(0, 3, 1, 2).reshape(len(x), -1))  # in the order in which PyTorch flattens


def test_the_two_agree(parity_check, parity_randomize):
    theirs, ours = TorchCNN(), FlaxCNN(rngs=nnx.Rngs(0))
    images = parity_randomize(ours, theirs, (4, 16, 16, 3))
    parity_check(ours, theirs, images, checks=("activations", "gradients", "batch_stats"))


def test_training_agrees():
    theirs, ours = TorchCNN(), FlaxCNN(rngs=nnx.Rngs(0))
    parity.randomize(ours, theirs)
    parity.assert_train_parity(ours, theirs, parity.random_inputs((4, 16, 16, 3)), optimizer="adamw", steps=2)


def test_flax_own_padding_would_be_found():
    theirs, ours = TorchCNN(), FlaxCNN(rngs=nnx.Rngs(0), padding="SAME")
    parity.randomize(ours, theirs)
    with pytest.raises(AssertionError, match="padding of conv1 is SAME, PyTorch's is 1"):
        parity.assert_parity(ours, theirs, parity.random_inputs((4, 16, 16, 3)))
