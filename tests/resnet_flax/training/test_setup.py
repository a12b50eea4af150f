"""What a run says of the weights that it starts from."""

import json

import jax
import pytest
from flax import nnx

from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.commands.train import parse
from resnet_flax.data import open_source
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.models import build_model
from resnet_flax.training.setup import Setup, facts_of, resolve
from resnet_flax.training.sharding import data_mesh

NAMES = [*"abcdefg"]
HEAD = "class 0 is 'a' in w.safetensors and '0' in synthetic:8x8x3:7; the head, which has as many classes, is kept"
MEAN = "this run uses mean (0.5,), std (0.5,)"


@pytest.mark.parametrize(
    ("classes", "metadata", "said"),
    [
        (7, {}, [f"no preprocessing came with w.safetensors; {MEAN}"]),
        (
            7,
            Preprocessing(mean=(0.4,), std=(0.3,)).to_metadata(),
            [f"w.safetensors comes with mean (0.4,), std (0.3,); {MEAN}"],
        ),
        (7, Preprocessing(mean=(0.5,), std=(0.5,)).to_metadata() | {"class_names": json.dumps(NAMES)}, [HEAD]),
        (7, Preprocessing(mean=(0.5,), std=(0.5,)).to_metadata() | {"class_names": json.dumps([*"0123456"])}, []),
        (
            4,
            Preprocessing(mean=(0.5,), std=(0.5,)).to_metadata() | {"class_names": json.dumps(NAMES[:4])},
            ["the head is new: 7 cl"],
        ),
    ],
)
def test_what_a_run_says_of_the_weights_it_starts_from(classes, metadata, said, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    model = build_model("test_resnet", num_classes=classes, rngs=nnx.Rngs(0))
    write_checkpoint("w.safetensors", to_torch(model), metadata)
    options = ["--model", "test_resnet", "--weights", "w.safetensors", "--data", "synthetic:8x8x3:7"]
    config = resolve(parse([*options, "--batch-size", "4"]))
    setup = Setup(config, data_mesh(jax.devices()[:1]), facts_of(open_source(config.data.data)))
    assert setup.build_model().num_classes == 7
    assert len(caplog.messages) == len(said)
    assert all(text.startswith(words) for text, words in zip(caplog.messages, said, strict=True))
