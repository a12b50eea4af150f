"""Recurrent layers, whose gates PyTorch keeps in one tensor and whose bias it keeps in two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity

SEQUENCES = parity.random_inputs((2, 4, 3))
HIDDEN = 5
LAYERS = (
    (nnx.LSTMCell, nn.LSTM),
    (nnx.OptimizedLSTMCell, nn.LSTM),
    (nnx.GRUCell, nn.GRU),
    (nnx.SimpleCell, nn.RNN),
)


class TorchNet(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, HIDDEN, batch_first=True, **options)
        self.fc = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


class FlaxNet(nnx.Module):
    def __init__(self, cell, *, bidirectional=False):
        rngs = nnx.Rngs(0)
        layers = [nnx.RNN(cell(3, HIDDEN, rngs=rngs), rngs=rngs) for _ in range(1 + bidirectional)]
        self.rnn = nnx.Bidirectional(*layers, rngs=rngs) if bidirectional else layers[0]
        self.fc = nnx.Linear(HIDDEN * len(layers), 2, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.rnn(x))


@pytest.mark.parametrize(("cell", "kind"), LAYERS, ids=lambda kind: kind.__name__)
def test_names_and_bytes_there_and_back(cell, kind):
    ours, theirs = FlaxNet(cell), TorchNet(kind)
    parity.randomize(ours, theirs)
    state_dict = theirs.state_dict()
    back = parity.to_torch(ours, like=state_dict)
    assert list(back) == list(state_dict)
    assert all(np.array_equal(back[name], tensor) for name, tensor in state_dict.items())
    other = TorchNet(kind)
    other.load_state_dict({name: torch.tensor(array) for name, array in parity.to_torch(ours).items()})
    x = torch.from_numpy(SEQUENCES)
    torch.testing.assert_close(other(x), theirs(x), rtol=0, atol=8 * float(torch.finfo(torch.float32).eps))


@pytest.mark.parametrize(
    ("cell", "kind"),
    [LAYERS[1], pytest.param(*LAYERS[0], marks=pytest.mark.full), LAYERS[2]],
    ids=lambda kind: kind.__name__,
)
def test_a_layer_agrees_with_pytorchs(cell, kind):
    ours, theirs = FlaxNet(cell), TorchNet(kind)
    parity.randomize(ours, theirs)
    report = parity.check(ours, theirs, SEQUENCES, steps=2)
    assert report.passed, str(report)
    assert "rnn.weight_hh_l0" in {row.name for row in report.of("gradients")}
    assert any("one bias where PyTorch keeps two" in warning for warning in report.warnings)
    ours.rnn.cell.gate_fn = nnx.hard_sigmoid
    assert not parity.check(ours, theirs, SEQUENCES, checks=("forward",)).passed


def test_both_directions_and_the_reference_in_flax():
    ours, theirs = FlaxNet(nnx.OptimizedLSTMCell, bidirectional=True), TorchNet(nn.LSTM, bidirectional=True)
    parity.randomize(ours, theirs)
    assert parity.check(theirs, ours, SEQUENCES, checks=("forward", "gradients")).passed


@pytest.mark.full
def test_a_recording_has_one_bias(tmp_path):
    theirs = TorchNet(nn.LSTM)
    parity.record(theirs, SEQUENCES, path := tmp_path / "rnn.safetensors", steps=1)
    ours = parity.to_flax(parity.load_checkpoint(path), FlaxNet(nnx.OptimizedLSTMCell))
    assert parity.check(ours, path).passed
    assert parity.check(theirs, path, checks="forward").passed


def test_weights_whose_sum_is_rounded():
    ours, theirs = FlaxNet(nnx.OptimizedLSTMCell), TorchNet(nn.LSTM)
    parity.to_flax(theirs.state_dict(), ours)  # PyTorch's own random values
    assert parity.check(ours, theirs, SEQUENCES, checks=("forward", "weights")).passed
    ours.rnn.cell.dense_h.bias[...] += 1e-6
    assert not parity.check(ours, theirs, SEQUENCES, checks=("forward",)).passed
    back = parity.to_torch(ours, like=theirs.state_dict())
    assert not back["rnn.bias_ih_l0"].any()
    assert np.array_equal(back["rnn.bias_hh_l0"], ours.rnn.cell.dense_h.bias)


def test_a_bias_inside_the_reset_gate_has_no_place():
    with pytest.raises(parity.ParityError, match=r"rnn\.bias_hh_l0 is not zero in its last third"):
        parity.to_flax(TorchNet(nn.GRU).state_dict(), FlaxNet(nnx.GRUCell))


def test_a_cell_alone():
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(3, HIDDEN)

        def forward(self, x):
            h = c = x.new_zeros(len(x), HIDDEN)
            for step in range(x.shape[1]):
                h, c = self.cell(x[:, step], (h, c))
            return h

    class Ours(nnx.Module):
        def __init__(self):
            self.cell = nnx.LSTMCell(3, HIDDEN, rngs=nnx.Rngs(0))

        def __call__(self, x):
            carry = (jnp.zeros((len(x), HIDDEN), x.dtype),) * 2
            for step in range(x.shape[1]):
                carry, h = self.cell(carry, x[:, step])
            return h

    ours, theirs = nnx.eval_shape(Ours), Theirs()
    parity.randomize(ours, theirs)
    report = parity.check(ours, theirs, SEQUENCES, checks=("forward", "gradients"))
    assert report.passed, str(report)
    ours.cell.activation_fn = jax.nn.relu
    assert "raised" not in str(parity.check(ours, theirs, SEQUENCES, checks=("forward", "activations")))
