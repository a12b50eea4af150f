"""StableHLO artifacts of earlier versions: they run, and give the numbers that they gave."""

import hashlib
import json
from importlib.metadata import version

import jax
import numpy as np
import pytest

from tests.resnet_flax.golden.make_stablehlo import FOLDER, images

ARTIFACTS = sorted(FOLDER.glob("*.stablehlo"))


def test_there_is_one_of_this_version():
    assert version("resnet-flax") in {path.stem for path in ARTIFACTS}


@pytest.mark.parametrize("path", ARTIFACTS, ids=lambda path: path.stem)
def test_an_artifact_gives_the_numbers_that_it_gave(path):
    content, kept = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(content).hexdigest() == kept["sha256"]
    assert len(content) < 100_000
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda")
    logits = np.array(kept["logits"])
    assert np.abs(logits).max() > 0.1
    found = np.asarray(jax.jit(program.call)(images(2)))
    assert np.abs(found - logits).max() <= kept["tolerance"] * np.abs(logits).max()
    more = np.asarray(jax.jit(program.call)(images(5)))  # any number of images
    assert more.shape == (5, 5)
    assert np.abs(more[:2] - logits).max() <= kept["tolerance"] * np.abs(logits).max()
