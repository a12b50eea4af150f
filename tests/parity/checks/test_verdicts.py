"""Two right networks agree, however they are built inside; what differs there is noted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from flax import nnx
from torch import nn
from torch.nn import functional as F

import parity

CHECKS = ("forward", "activations", "gradients")


class Theirs(nn.Module):
    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


class Ours(nnx.Module):
    def __init__(self, run, **parts):
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x):
        return self.run(self, x)


class Call(nnx.Module):
    """A submodule without parameters."""

    def __init__(self, call):
        self.call = call

    def __call__(self, x):
        return self.call(x)


class TorchCall(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def linear(inside=6, outside=4, **options):
    return nnx.Linear(inside, outside, rngs=nnx.Rngs(0), **options)


def conv():
    return nnx.Conv(3, 4, (3, 3), padding=1, rngs=nnx.Rngs(0))


def filled(ours, theirs):
    parity.randomize(ours, theirs)
    return ours, theirs


class NormAct(nn.LayerNorm):
    def forward(self, x):
        return F.silu(super().forward(x))


def norm_with_activation():
    return (
        Ours(
            lambda s, x: s.fc(nnx.silu(s.norm(x))),
            norm=nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0)),
            fc=linear(),
        ),
        Theirs(lambda s, x: s.fc(s.norm(x)), norm=NormAct(6), fc=nn.Linear(6, 4)),
    )


def kept_axes():
    return (
        Ours(
            lambda s, x: s.fc(s.pool(s.conv(x)).reshape(len(x), 4)),
            conv=conv(),
            pool=Call(lambda x: x.mean((1, 2), keepdims=True)),
            fc=linear(4),
        ),
        Theirs(
            lambda s, x: s.fc(s.pool(s.conv(x))),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            pool=TorchCall(lambda x: x.mean((2, 3))),
            fc=nn.Linear(4, 4),
        ),
    )


def tokens_of_an_image():
    return (
        Ours(
            lambda s, x: s.fc(s.flat(s.conv(x)).mean(1)),
            conv=conv(),
            flat=Call(lambda x: x.reshape(len(x), -1, 4)),
            fc=linear(4),
        ),
        Theirs(
            lambda s, x: s.fc(s.flat(s.conv(x)).mean(2)),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            flat=TorchCall(lambda x: x.flatten(2)),
            fc=nn.Linear(4, 4),
        ),
    )


def channels_first_inside():
    def ours(s, x):
        inner = s.norm(s.conv(x))  # (N, H, W, C); its ReLU is taken channels first
        return s.fc(s.act(inner.transpose(0, 3, 1, 2)).mean((2, 3)))

    return (
        Ours(
            ours,
            conv=conv(),
            norm=nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=nnx.Rngs(0)),
            act=Call(nnx.relu),
            fc=linear(4),
        ),
        Theirs(
            lambda s, x: s.fc(s.act(s.norm(s.conv(x))).mean((2, 3))),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.GroupNorm(2, 4),
            act=nn.ReLU(),
            fc=nn.Linear(4, 4),
        ),
    )


def square_attention_maps():
    """Four heads on four tokens: (N, h, T, T) has the channels nowhere, and either layout its shape."""

    def ours(s, x):
        q = s.q(x).reshape(len(x), 4, 4, 4)
        return s.fc((s.map(nnx.softmax(q, -1)) @ q).reshape(len(x), 4, 16))

    def theirs(s, x):
        q = s.q(x).reshape(len(x), 4, 4, 4)
        return s.fc((s.map(q.softmax(-1)) @ q).reshape(len(x), 4, 16))

    return (
        Ours(ours, q=linear(6, 16), map=Call(lambda x: x), fc=linear(16)),
        Theirs(theirs, q=nn.Linear(6, 16), map=nn.Identity(), fc=nn.Linear(16, 4)),
    )


def fused_attention():
    """Spelt out in Flax, one function in PyTorch."""

    def ours(s, x):
        q, k, v = (part.reshape(*x.shape[:2], 2, 4).swapaxes(1, 2) for part in jnp.split(s.qkv(x), 3, -1))
        attended = nnx.softmax(q @ k.swapaxes(-1, -2) / 2, -1) @ v
        return s.fc(attended.swapaxes(1, 2).reshape(*x.shape[:2], 8))

    def theirs(s, x):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in s.qkv(x).chunk(3, -1))
        return s.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return Ours(ours, qkv=linear(6, 24), fc=linear(8)), Theirs(theirs, qkv=nn.Linear(6, 24), fc=nn.Linear(8, 4))


def dense(run=None, torch_run=None, **parts):
    return (
        Ours(run or (lambda s, x: s.fc(x)), fc=linear(), **parts),
        Theirs(torch_run or (lambda s, x: s.fc(x)), fc=nn.Linear(6, 4)),
    )


def tied():
    layer, other = linear(6, 6), nn.Linear(6, 6)
    return (
        Ours(lambda s, x: s.b(nnx.relu(s.a(x))), a=layer, b=layer),
        Theirs(lambda s, x: s.b(F.relu(s.a(x))), a=other, b=other),
    )


PAIRS = {
    "an activation inside a norm": (norm_with_activation, (3, 6)),
    "a pool that keeps its axes": (kept_axes, (2, 4, 5, 3)),
    "tokens of an image": (tokens_of_an_image, (2, 3, 5, 3)),
    "channels first inside": (channels_first_inside, (2, 4, 5, 3)),
    "square attention maps": (square_attention_maps, (3, 4, 6)),
    "fused attention": (fused_attention, (2, 5, 6)),
    "einsum": (lambda: dense(lambda s, x: jnp.einsum("ni,io->no", x, s.fc.kernel[...]) + s.fc.bias[...][None]), (3, 6)),
    "another order of sums": (
        lambda: dense(lambda s, x: sum(x[:, i : i + 2] @ s.fc.kernel[i : i + 2] for i in (4, 0, 2)) + s.fc.bias[None]),
        (3, 6),
    ),
    "jit inside": (lambda: dense(lambda s, x: jax.jit(lambda y: s.fc(y))(x)), (3, 6)),
    "nnx.jit inside": (lambda: dense(lambda s, x: nnx.jit(lambda m, y: m(y))(s.fc, x)), (3, 6)),
    "remat": (lambda: dense(lambda s, x: jax.checkpoint(lambda y: s.fc(y))(x)), (3, 6)),
    "nnx.remat": (lambda: dense(lambda s, x: nnx.remat(lambda m, y: m(y))(s.fc, x)), (3, 6)),
    "vmap over the batch": (lambda: dense(lambda s, x: jax.vmap(s.fc)(x)), (3, 6)),
    "tied layers": (tied, (3, 6)),
    "an unused submodule of ours": (lambda: dense(extra=Call(lambda x: x)), (3, 6)),
    "softmax shifted by its maximum": (
        lambda: dense(
            lambda s, x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(s.fc(x) - s.fc(x).max(-1, keepdims=True))),
            lambda s, x: s.fc(x).softmax(-1),
        ),
        (3, 6),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_right_networks_agree(name):
    build, shape = PAIRS[name]
    report = parity.check(*filled(*build()), parity.random_inputs(shape), checks=(*CHECKS, "activation_gradients"))
    assert report.passed, str(report)
    if "jit" in name or "remat" in name or "vmap" in name:
        assert any("fc of the Flax network was not seen" in warning for warning in report.warnings)


def test_what_differs_inside_is_noted_and_fails_alone():
    pair = filled(*norm_with_activation())
    inputs = parity.random_inputs((3, 6))
    report = parity.check(*pair, inputs, checks=CHECKS)
    assert report.passed
    assert any(
        "norm differs on the two sides (eval mode), but the outputs and gradients agree" in n for n in report.notes
    )
    assert "ok, 1 noted" in str(report)
    assert not parity.check(*pair, inputs, checks="activations").passed
    alone = parity.check(*filled(*kept_axes()), parity.random_inputs((2, 4, 5, 3)), checks="activations")
    assert alone.passed
    assert any("pool is compared reshaped from (2, 1, 1, 4) to (2, 4)" in note for note in alone.notes)


def test_a_folded_norm_in_eval_mode():
    ours = Ours(lambda s, x: s.conv(x), conv=nnx.Conv(3, 4, (1, 1), rngs=nnx.Rngs(0)))
    theirs = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    parity.randomize(None, theirs)
    with jax.enable_x64(True):
        scale = theirs[1].weight.double() / (theirs[1].running_var.double() + 1e-5).sqrt()
        kernel = (theirs[0].weight.double() * scale[:, None, None, None]).detach().numpy()
        bias = (theirs[1].bias.double() - theirs[1].running_mean.double() * scale).detach().numpy()
        ours.conv.kernel = nnx.Param(jnp.asarray(kernel.transpose(2, 3, 1, 0)))
        ours.conv.bias = nnx.Param(jnp.asarray(bias))
        report = parity.check(ours, theirs, parity.random_inputs((2, 4, 4, 3)), checks="forward", modes=("eval",))
    assert report.passed, str(report)
    assert any("do not correspond" in warning for warning in report.warnings)
    with pytest.raises(parity.ParityError, match="do not correspond"):
        parity.check(ours, theirs, parity.random_inputs((2, 4, 4, 3)), checks="forward")


def test_modes_are_taken_as_given():
    ours, theirs = filled(
        nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, momentum=0.9, rngs=nnx.Rngs(0)), nn.BatchNorm1d(4)
    )
    inputs = parity.random_inputs((5, 4))
    report = parity.check(ours, theirs, inputs, modes="eval")
    assert report.passed
    assert {row.mode for row in report.comparisons} == {"eval"}
    assert any("batch_stats was not run" in warning for warning in report.warnings)
    assert any("optimizer was not run" in warning for warning in report.warnings)
    with pytest.raises(parity.ParityError, match="it holds eval, train or both"):
        parity.check(ours, theirs, inputs, modes=("test",))


@pytest.mark.parametrize("name", ["stop_gradient", "custom_vjp"])
def test_activation_gradients_locate_a_fault_of_the_backward_pass(name):
    @jax.custom_vjp
    def doubled(x):
        return x

    doubled.defvjp(lambda x: (x, None), lambda _, gradient: (2 * gradient,))
    fault = {"stop_gradient": jax.lax.stop_gradient, "custom_vjp": doubled}[name]
    pair = filled(
        Ours(lambda s, x: s.c(nnx.relu(s.b(fault(s.a(x))))), a=linear(6, 6), b=linear(6, 6), c=linear()),
        Theirs(lambda s, x: s.c(F.relu(s.b(s.a(x)))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 4)),
    )
    report = parity.check(*pair, parity.random_inputs((3, 6)), checks=("forward", "activation_gradients", "gradients"))
    assert [row.name for row in report.failures if row.check == "activation_gradients"] == ["a"]
    assert report.findings[0].where == "a"
    assert "that of b agrees" in report.findings[0].cause
    assert all(row.floor < 1e-13 for row in report.of("activation_gradients"))


def test_gradients_of_activations_that_pytorch_overwrites_and_passes_on():
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Identity())
    pair = filled(
        Ours(
            lambda s, x: s.fc(s.block(x)),
            block=nnx.Sequential(linear(6, 6), Call(nnx.relu), Call(lambda x: x)),
            fc=linear(),
        ),
        Theirs(lambda s, x: s.fc(s.block(x)), block=inner, fc=nn.Linear(6, 4)),
    )
    report = parity.check(*pair, parity.random_inputs((3, 6)), checks="activation_gradients")
    assert report.passed, str(report)
    assert {row.name for row in report.comparisons} == {"block", "block.0", "block.1", "block.2", "fc"}
    assert np.all([row.error.cosine > 0.999 for row in report.comparisons])
