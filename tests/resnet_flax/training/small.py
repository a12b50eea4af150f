"""The train command on a tiny network in place of the ResNet, and on a tiny data set."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from flax import nnx
from PIL import Image

from resnet_flax.commands import train as command
from resnet_flax.layers import BatchNorm, Conv, Linear

OPTIONS = [
    "--data",
    "synthetic:8x8x1:64",
    "--image-size",
    "8",
    "--batch-size",
    "16",
    "--epochs",
    "3",
    "--log-every",
    "1",
]
STEPS = 12


class Plain(nnx.Module):
    """What the metadata of weights has of a ResNet's arithmetic."""

    activation = staticmethod(nnx.relu)
    stem = SimpleNamespace(max_pool_ceil=False, aa_layer="")
    dilated, last_stride, stride_in_first_1x1, global_pool = (False,) * 4, 2, False, "avg"


class Small(Plain):
    small_images = True

    def __init__(self, num_classes, in_channels, rngs):
        self.conv1 = Conv(in_channels, 8, 3, stride=2, padding=1, rngs=rngs)
        self.bn1 = BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.fc = Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.drop(nnx.relu(self.bn1(self.conv1(x)))).mean((1, 2)))


def create(name, *, num_classes, in_channels, rngs, **options):
    return Small(num_classes, in_channels, rngs)


def leave_blank(runs, path, *, title):
    """In place of `plot_curves`, which takes a third of such a run."""
    path.write_bytes(b"")


def use_small_network(monkeypatch, tmp_path):
    """Makes the train command build `Small` and leave the plot blank, in an empty current directory."""
    monkeypatch.setattr("resnet_flax.training.setup.create_model", create)
    monkeypatch.setattr("resnet_flax.training.loop.plot_curves", leave_blank)
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return command.main([*arguments])


def make_folder(folder="images", classes="ab"):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            Path(folder, split, name).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(random.integers(0, 256, (8, 8), np.uint8))
                picture.save(Path(folder, split, name, f"{i}.png"))
