"""What a check is at is told to whoever shows it, and to nobody else."""

import re

import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx

import parity
from parity.progress import shown_by


def test_checks_and_their_tensors_are_told_in_order():
    ours, theirs = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), torch.nn.Linear(3, 2)
    inputs = parity.random_inputs((4, 3))
    parity.randomize(ours, theirs)
    told = []
    with shown_by(lambda check, step: told.append((check, step))):
        parity.check(ours, theirs, inputs, checks=("forward", "gradients"))
    assert [check for check, step in told if not step] == ["forward, 1 of 2", "gradients, 2 of 2"]
    assert ("forward, 1 of 2", "eval mode") in told
    assert any(step.startswith("PyTorch's noise, 1 of ") for _, step in told)
    assert any(re.fullmatch(r"weight, \d of \d", step) for check, step in told if check == "gradients, 2 of 2")
    count = len(told)
    parity.check(ours, theirs, inputs, checks=("forward",))
    assert len(told) == count
