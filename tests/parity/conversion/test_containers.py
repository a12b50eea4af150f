"""Variables in containers, layers with rules of several variables, and maps of names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity


def linear(rngs):
    return nnx.Linear(3, 3, rngs=rngs)


class Held(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.data([linear(rngs), (linear(rngs), linear(rngs))])
        self.named = nnx.Dict({"a": linear(rngs), "g": nnx.Param(jnp.ones(2))})
        self.scales = nnx.List([nnx.Param(jnp.ones(4))])


def test_every_variable_in_a_container_is_converted_and_comes_back():
    state = parity.to_torch(Held())
    assert set(state) == {
        *(
            f"{path}.{leaf}"
            for path in ("blocks.0", "blocks.1.0", "blocks.1.1", "named.a")
            for leaf in ("weight", "bias")
        ),
        "named.g",
        "scales.0",
    }
    values = {name: np.random.default_rng(0).normal(size=array.shape).astype("f") for name, array in state.items()}
    back = parity.to_torch(parity.to_flax(values, Held()))
    assert all(np.array_equal(back[name], values[name]) for name in values)


def test_layers_stacked_twice_are_refused_by_name():
    class Stacked(nnx.Module):
        def __init__(self):
            make = nnx.vmap(nnx.vmap(lambda key: linear(nnx.Rngs(key))))
            self.layers = make(jax.random.split(jax.random.key(0), (4, 2)))

    with pytest.raises(parity.ParityError, match=r"layers.kernel has the shape \(4, 2, 3, 3\), 4 axes .* nnx.vmap"):
        parity.to_torch(Stacked())


@pytest.mark.parametrize("kdim", [8, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_pytorchs(bias, kdim):
    theirs = nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, vdim=kdim, batch_first=True).double()
    with jax.enable_x64(True):
        ours = nnx.MultiHeadAttention(
            2, 8, in_kv_features=kdim, use_bias=bias, decode=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        parity.randomize(ours, theirs)
        # With a rate, deterministic or not, Flax does not take the shortcut whose softmax is in float32.
        ours.dropout_rate, ours.deterministic = 0.5, True
        query, key = (np.random.default_rng(0).normal(size=(3, 5, size)) for size in (8, kdim))
        wanted = theirs(*(torch.from_numpy(x) for x in (query, key, key)), need_weights=False)[0].detach().numpy()
        np.testing.assert_allclose(ours(query, key), wanted, rtol=0, atol=1e-13 * abs(wanted).max())
        back = parity.to_torch(ours)
    assert all(np.array_equal(back[name], tensor.numpy()) for name, tensor in theirs.state_dict().items())
    assert back.keys() == theirs.state_dict().keys()


def test_general_linear_layers_and_slopes_are_pytorchs():
    class Ours(nnx.Module):
        def __init__(self):
            self.into = nnx.LinearGeneral(6, (2, 4), rngs=nnx.Rngs(0))
            self.act = nnx.PReLU()
            self.out = nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.out(self.act(self.into(x)))

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.act, self.out = nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.act(self.into(x)))

    ours, theirs = Ours(), Theirs()
    parity.randomize(ours, theirs)
    report = parity.check(ours, theirs, parity.random_inputs((4, 6)), checks=("forward", "gradients", "optimizer"))
    assert report.passed, str(report)


class Renamed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.body = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.token = nnx.Param(jnp.ones(3))


def state(*names):
    shapes = {"first": (4, 3), "mid.0": (4, 4), "mid.1": (4, 4), "last": (2, 4)}
    state = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": np.full(shape, len(state), "f"), f"{name}.bias": np.zeros(shape[0], "f")}
    return state


def test_names_are_proposed_written_and_used(tmp_path):
    original = {"token": np.zeros(3, "f"), **state()}
    names = parity.match_names(Renamed(), original, tmp_path / "names.json")
    assert names == {"stem": "first", "body.0": "mid.0", "body.1": "mid.1", "head": "last"}
    assert json.loads((tmp_path / "names.json").read_text()) == names
    back = parity.to_torch(parity.to_flax(original, Renamed(), names=names), names=names)
    assert all(np.array_equal(back[name], original[name]) for name in original)


def test_no_name_is_proposed_for_another_shape():
    original = {"token": np.zeros(3, "f"), **state()}
    original["last.weight"] = np.zeros((5, 4), "f")
    with pytest.raises(parity.ParityError, match=r"(?s)without a counterpart.*last.weight.*head.weight"):
        parity.match_names(Renamed(), original)


def test_a_bare_parameter_and_a_wrapper_are_renamed():
    class Wrapper(nnx.Module):
        def __init__(self):
            self.inner = Renamed()

    names = {"inner": "", "inner.token": "cls_token", "inner.stem.kernel": "stem.matrix"}
    converted = parity.to_torch(Wrapper(), names=names)
    assert {"cls_token", "stem.matrix", "stem.bias", "body.0.weight"} <= set(converted)
    with pytest.raises(parity.ParityError, match="no module 'inner.stam'; the nearest is 'inner.stem'"):
        parity.to_torch(Wrapper(), names={"inner.stam": "x"})
