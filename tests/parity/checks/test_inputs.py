"""What networks may take and give: several inputs, keywords, integers, complex values, structures."""

import dataclasses
import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity
from tests.parity.checks.test_verdicts import dense, filled, linear

ALL = ("forward", "activations", "gradients", "activation_gradients", "optimizer", "trajectory")


class Ours(nnx.Module):
    def __init__(self):
        self.embed, self.fc = nnx.Embed(7, 6, rngs=nnx.Rngs(0)), linear(6, 6)

    def __call__(self, x, tokens, mask=None, *, factor=1.0):
        y = self.fc(x) + self.embed(tokens)
        return factor * (y if mask is None else jnp.where(mask, y, 0))


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(7, 6), nn.Linear(6, 6)

    def forward(self, x, tokens, mask=None, *, factor=1.0):
        y = self.fc(x) + self.embed(tokens)
        return factor * (y if mask is None else torch.where(mask, y, 0))


X, TOKENS, MASK = parity.random_inputs((4, 6)), np.array([0, 3, 6, 2]), np.arange(24).reshape(4, 6) % 3 > 0


@pytest.mark.parametrize(
    "inputs",
    [
        (X, TOKENS),
        (X, TOKENS, MASK),
        (X, TOKENS, None),
        {"x": X, "tokens": TOKENS, "mask": MASK, "factor": 2.0},
    ],
)
def test_several_inputs(inputs):
    report = parity.check(*filled(Ours(), Theirs()), inputs, checks=ALL, steps=2)
    assert report.passed, str(report)
    key = "(inputs).x" if isinstance(inputs, dict) else "(inputs).0"
    assert key in {row.name for row in report.of("gradients")}
    assert all(row.floor < 1e-13 for row in report.comparisons)
    assert "x 4x6" in str(report) or "0 4x6" in str(report)


def test_a_fault_in_the_second_input():
    class Wrong(Ours):
        def __call__(self, x, tokens, mask=None):
            return super().__call__(x, tokens, None if mask is None else ~mask)

    pair = filled(Wrong(), Theirs())
    assert not parity.check(*pair, (X, TOKENS, MASK), checks="forward").passed
    assert parity.check(*pair, (X, TOKENS), checks="forward").passed


def test_images_beside_a_vector():
    class Film(nnx.Module):
        def __init__(self):
            self.conv, self.fc = nnx.Conv(3, 4, (3, 3), padding=1, rngs=nnx.Rngs(0)), linear(6, 4)

        def __call__(self, image, vector):
            return self.conv(image) * self.fc(vector)[:, None, None]

    class TorchFilm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 4)

        def forward(self, image, vector):
            return self.conv(image) * self.fc(vector)[:, :, None, None]

    inputs = {"vector": X, "image": parity.random_inputs((4, 5, 3, 3))}
    assert parity.check(*filled(Film(), TorchFilm()), inputs, checks=("forward", "gradients")).passed


@dataclasses.dataclass(frozen=True)
class Parts:
    logits: object
    hidden: object = None


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    "build",
    [
        lambda y: Parts(y),
        lambda y: Parts(y, (2 * y, {"deep": 3 * y})),
        lambda y: Pair(y, [2 * y]),
        lambda y: {"out": y, "size": 3},
    ],
)
def test_structures_of_outputs(build):
    pair = filled(*dense(lambda s, x: build(s.fc(x)), lambda s, x: build(s.fc(x))))
    report = parity.check(*pair, X, checks=ALL, steps=2)
    assert report.passed, str(report)
    assert all(row.floor < 1e-13 for row in report.comparisons)  # a permuted batch comes back in order


def test_outputs_that_are_built_differently():
    for build in (lambda y: {"out": y}, lambda y: (y, y)):
        with pytest.raises(parity.ParityError, match="built differently: output from Flax"):
            parity.check(
                *filled(*dense(torch_run=lambda s, x, b=build: b(s.fc(x)))), X, checks=("forward", "gradients")
            )
    pair = filled(*dense(torch_run=lambda s, x: object()))
    with pytest.raises(parity.ParityError, match="return a tuple, a dict or a dataclass"):
        parity.check(*pair, X, checks="forward")


def test_complex_values():
    class Spectrum(nnx.Module):
        def __init__(self):
            self.filter = nnx.Param(jnp.ones(4, jnp.complex64))

        def __call__(self, x):
            return jnp.fft.rfft(x) * self.filter[...][None]

    class TorchSpectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, x):
            return torch.fft.rfft(x) * self.filter

    class Conjugated(Spectrum):
        def __call__(self, x):
            return super().__call__(x).conj()

    theirs = TorchSpectrum()
    with torch.no_grad():
        theirs.filter.copy_(torch.tensor([1 + 2j, 0.5 - 1j, -1 + 0.3j, 2j]))
    for kind, agree in ((Spectrum, True), (Conjugated, False)):
        ours = parity.to_flax(theirs.state_dict(), kind())
        report = parity.check(ours, theirs, X, checks=("forward", "gradients"))
        assert report.passed == agree, str(report)


def test_a_traced_original_is_refused():
    ours, _ = filled(*dense())
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        traced = torch.jit.trace(nn.Linear(6, 4), torch.ones(2, 6))
    with pytest.raises(parity.ParityError, match="traced"):
        parity.check(ours, traced, X)
