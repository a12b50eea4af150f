"""The examples run as their first lines say; `docs/examples/test_own_cnn.py` is collected as it is."""

import subprocess
import sys

import jax
import pytest
from flax import nnx
from PIL import Image

from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.data import EvaluationTransform, open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.models import build_model
from tests import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small checkpoint that says how its images are prepared, so that the examples compile in seconds."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    model = jax.jit(lambda: nnx.state(build_model("resnet18", rngs=nnx.Rngs(0))))()
    network = nnx.eval_shape(lambda: build_model("resnet18", rngs=nnx.Rngs(0)))
    nnx.update(network, model)
    preprocessing = Preprocessing(EvaluationTransform(32, 32), (0.5,), (0.5,))
    write_checkpoint(path, to_torch(network), preprocessing.to_metadata())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two of the digits as PNG files in class folders."""
    root = tmp_path_factory.mktemp("images")
    for split, limit in (("train", 64), ("test", 20)):
        source = open_source("digits", split)
        for index in [i for i in range(len(source)) if source.labels[i] in (0, 1)][:limit]:
            path = root / split / f"digit-{source.labels[index]}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source[index]["image"][..., 0]).save(path)
    return root


def test_look_at_features(weights, folder, tmp_path):
    out = tmp_path / "features.png"
    assert run("look_at_features.py", weights, next(folder.glob("test/*/*.png")), out) == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_finetune_on_a_folder(weights, folder):
    lines = run("finetune_on_a_folder.py", folder, weights).splitlines()
    assert lines[-1].startswith("classes: digit-0, digit-1")
    assert float(lines[-2].rpartition(" ")[2].rstrip("%")) >= 90  # even on random features, zeros are not ones
