"""StableHLO artefacts of earlier releases still run, and give the numbers that they gave."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from jax import export

from parity.checks.tolerance import relative
from tests.numerics import tolerance

GOLDEN = Path(__file__).parent / "golden"
ARTEFACTS = sorted(GOLDEN.glob("*.stablehlo"))


def test_there_is_one():
    assert ARTEFACTS


@pytest.mark.parametrize("path", ARTEFACTS, ids=lambda path: path.stem)
def test_it_still_gives_the_same_numbers(path):
    """Within k times the error that float32 had when it was made; see `golden/make_stablehlo.py`."""
    provenance = json.loads(path.with_suffix(".json").read_text())
    for name, digest in provenance["sha256"].items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest
    program = export.deserialize(bytearray(path.read_bytes()))
    with np.load(path.with_suffix(".npz")) as arrays:
        images, expected = arrays["images"], arrays["logits"]
    for batch in (len(images), 1):
        logits = np.asarray(program.call(images[:batch]))
        assert logits.dtype == np.float32
        assert relative(logits, expected[:batch]) <= tolerance(provenance["floor"])
