"""What the commands import: nothing that a run does not use, however many packages are installed beside it."""

import subprocess
import sys

from resnet_flax.data import open_source
from resnet_flax.data.prepare import write_tfds

SLOW = {"pandas", "scipy", "sklearn", "tensorboardX", "tensorflow", "torch", "torchvision"}

PREDICTS = """
import sys
import resnet_flax.commands.predict
print(sorted({"grain", "matplotlib", "orbax", "tensorboard"} & set(sys.modules)))
"""
TRAINS = """
from resnet_flax.commands import train
from resnet_flax.data import evaluation_batches, evaluation_transform, open_source
from resnet_flax.training import loop
from resnet_flax.trackers.registry import find_trackers

train._require_libraries("training")
find_trackers([])
for source in open_source("digits"), open_source("tfds:grey", data_dir=sys.argv[1]):
    batch = next(iter(evaluation_batches(source, evaluation_transform(None, None), batch_size=4)))
    assert batch["image"].shape[0] == 4
print(sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


def test_only_what_is_used_is_imported(tmp_path):
    write_tfds("grey", tmp_path, {"train": open_source("synthetic:4x4x1:20")})
    command = [sys.executable, "-c", PREDICTS + TRAINS, str(tmp_path), *SLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "[]", ""]
    assert "Traceback" not in done.stderr
