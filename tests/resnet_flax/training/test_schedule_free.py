"""A run with a schedule-free optimiser: what it evaluates and keeps, and that it resumes exactly."""

from pathlib import Path

import numpy as np

from parity.conversion.checkpoints import read_checkpoint
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network
from tests.resnet_flax.training.test_loop import assert_same_state, final_state

OPTIMIZER = ["--optimizer", "schedule_free_adamw", "--schedule", "constant"]


def test_it_keeps_the_average_and_resumes_exactly(monkeypatch, tmp_path):
    use_small_network(monkeypatch, tmp_path)
    assert run("digits", *OPTIONS, *OPTIMIZER, "--epochs", "1", "--workdir", "parts") == 0
    state = final_state(Path("parts"))
    (z,) = (array for name, array in state.items() if "['z']['conv1.kernel']" in name)
    trained = state["['params']['conv1.kernel']"]
    average = (trained - 0.1 * z) / 0.9
    kept = read_checkpoint(Path("parts/best.safetensors")).tensors["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kept, average, rtol=1e-4, atol=1e-6)
    assert np.abs(kept - trained).max() > 1e-4
    assert run("--resume", "--workdir", "parts", "--epochs", "2") == 0
    assert run("digits", *OPTIONS, *OPTIMIZER, "--epochs", "2", "--workdir", "whole") == 0
    assert_same_state(final_state(Path("parts")), final_state(Path("whole")))
