"""The checks on small networks of any kind, their modes and precisions, and what they refuse."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from flax import nnx
from torch import nn

import parity
from parity.checks.check import CHECKS, make_pair
from parity.checks.pair import Pair
from parity.checks.tolerance import PROFILES, Noise, agreement, measure
from parity.sides.recording import recording_flax, recording_torch
from parity.sides.torch import TorchSide
from parity.sides.trainers import FlaxTrainer
from resnet_flax.layers import BatchNorm, Conv
from resnet_flax.models import Bottleneck
from resnet_flax.models.blocks import Shape
from tests.parity.diagnosis.faults import FlaxNet, NormOnly, norm_pair, pair, torch_net

EVEN, ODD = (4, 16, 26, 3), (3, 17, 21, 3)


class FlaxMLP(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, tokens):
        hidden = nnx.relu(self.norm(self.hidden(self.embed(tokens))))
        return {"scores": self.out(hidden), "pooled": hidden.mean(1)}


class TorchMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 16)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, tokens):
        hidden = torch.relu(self.norm(self.hidden(self.embed(tokens))))
        return {"scores": self.out(hidden), "pooled": hidden.mean(1)}


@pytest.mark.parametrize("shape", [EVEN, ODD])
def test_a_right_network_passes_everything(shape):
    ours, theirs = pair()
    checks = ("weights", "forward", "activations", "gradients", "batch_stats", "optimizer", "trajectory")
    report = parity.check(ours, theirs, parity.random_inputs(shape), np.arange(shape[0]), checks=checks, steps=2)
    assert report.passed, str(report)
    assert {row.check for row in report.comparisons} == set(checks)
    for check in ("forward", "activations", "gradients"):
        assert {row.mode for row in report.of(check)} == {"eval", "train"}
    # Both sides compute: in float64 they agree to rounding, and not by being the same numbers.
    errors = [row.error.relative for row in report.of("activations") + report.of("gradients")]
    assert 0 < max(errors) < 1e-13
    assert sum(error == 0 for error in errors) < len(errors) / 2
    assert all(row.floor > 0 for row in report.of("forward"))
    for check in ("forward", "gradients", "batch_stats", "optimizer", "trajectory"):  # each arrangement starts alike
        assert all(row.floor < 1e-13 for row in report.of(check))
    names = {row.name for row in report.of("gradients")}
    assert names == {"(loss)", "(inputs)", *dict(theirs.named_parameters())}
    assert {"conv1", "layer2.0.downsample.1", "layer2.0", "layer2", "fc"} <= {r.name for r in report.of("activations")}


def test_different_weights_pass_no_check():
    ours, theirs = pair()
    other = TorchSide(theirs, "float32").module
    parity.randomize(None, other, seed=9)
    # Not "initialization", which is about distributions, nor "layers", which compares layers alone.
    checks = tuple(check for check in CHECKS if check not in ("initialization", "layers", "weights"))
    arguments = ours, other, parity.random_inputs(EVEN), np.arange(4)
    assert not parity.check(*arguments, checks=("weights",)).passed
    report = parity.check(*arguments, checks=checks, steps=1)
    for check in checks:
        assert not all(row.passed for row in report.of(check)), check
    assert "from PyTorch's before anything is computed" in str(report)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lower_precisions_have_their_own_floor(precision):
    ours, theirs = pair()
    checks = ("forward", "activations", "layers", "gradients", "batch_stats")
    report = parity.check(ours, theirs, parity.random_inputs(EVEN), precision=precision, checks=checks)
    assert report.passed, str(report)
    # Every result was rounded at least once, and PyTorch itself is far from the next coarser precision.
    unit, coarser = {"float32": (2.0**-24, 2.0**-9), "bfloat16": (2.0**-9, 1.0)}[precision]
    assert 0.1 * unit < max(row.error.relative for row in report.of("forward"))
    assert max(row.floor for row in report.of("forward")) < 0.1 * coarser


@pytest.mark.parametrize(
    "optimizer",
    [
        parity.Optimizer("sgd", momentum=0.0, weight_decay=0.0),
        parity.Optimizer("sgd", nesterov=True),
        parity.Optimizer("adam", 1e-2),
        parity.Optimizer("adamw", lambda step: 1e-2 / (step + 1)),
    ],
    ids=["plain", "nesterov", "adam", "adamw"],
)
def test_every_optimizer_agrees_step_by_step(optimizer):
    ours, theirs = norm_pair(6, norm=lambda n, rngs: nnx.BatchNorm(n, momentum=0.9, use_fast_variance=False, rngs=rngs))
    inputs = np.random.default_rng(0).normal(size=(8, 6))
    report = parity.check(ours, theirs, inputs, checks=("optimizer",), optimizer=optimizer, steps=3)
    assert report.passed, str(report)
    moments = {"sgd": {"momentum_buffer"} if optimizer.momentum else set(), "adam": {"exp_avg", "exp_avg_sq"}}
    found = {row.name.partition(" ")[2] for row in report.comparisons} - {""}
    assert found == moments[optimizer.kind.removesuffix("w")]


def test_tokens_dictionaries_and_names_that_differ():
    class Headed(TorchMLP):
        def __init__(self):
            super().__init__()
            self.head = self.out
            del self.out

        def forward(self, tokens):
            hidden = torch.relu(self.norm(self.hidden(self.embed(tokens))))
            return {"scores": self.head(hidden), "pooled": hidden.mean(1)}

    ours, theirs = FlaxMLP(nnx.Rngs(0)), Headed()
    names = {"out": "head"}
    parity.randomize(ours, theirs, names=names)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 5))
    report = parity.check(ours, theirs, tokens, names=names, checks=("forward", "activations", "gradients"))
    assert report.passed, str(report)
    assert {row.name for row in report.of("forward")} == {"output.scores", "output.pooled"}
    assert [row.name for row in report.of("activations")] == ["embed", "hidden", "norm", "head"]
    assert "(inputs)" not in {row.name for row in report.of("gradients")}


def test_nothing_is_left_changed():
    ours, theirs = pair()
    before = {name: value.copy() for name, value in parity.to_torch(ours).items()}
    theirs_before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    call, mode = FlaxNet.__call__, theirs.training
    switches = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, torch.backends.cudnn.allow_tf32)
    failing = (lambda out, targets: out, lambda out, targets: out)
    with pytest.raises(parity.ParityError, match="the loss must be a scalar"):
        parity.check(ours, theirs, parity.random_inputs(EVEN), checks=("gradients",), loss=failing)
    after = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, torch.backends.cudnn.allow_tf32)
    assert after == switches
    assert FlaxNet.__call__ is call
    assert theirs.training is mode
    assert not theirs.conv1._forward_hooks
    assert all(np.array_equal(value, before[name]) for name, value in parity.to_torch(ours).items())
    assert all(torch.equal(tensor, theirs_before[name]) for name, tensor in theirs.state_dict().items())


def test_nan_says_where_it_first_appears():
    ours, theirs = pair()
    ours.layer2[0].bn1.scale[...] = jnp.full_like(ours.layer2[0].bn1.scale[...], jnp.inf)
    report = parity.check(ours, theirs, parity.random_inputs(EVEN), checks=("forward",))
    assert not report.passed
    broken = TorchSide(theirs, "float32").module
    with torch.no_grad():
        broken.layer1[0].conv3.weight.fill_(torch.nan)
    with pytest.raises(parity.ParityError, match=r"Flax first in layer2.0.bn1, PyTorch first in layer1.0.conv3"):
        parity.check(ours, broken, parity.random_inputs(EVEN), checks=("forward",))


def test_a_fault_of_ones_own_is_located():
    """What no hypothesis knows is still located and measured."""

    class Shifted(NormOnly):
        def __call__(self, x):
            return self.fc(self.bn1(x) + 1e-6)

    theirs = nn.Sequential()
    theirs.add_module("bn1", nn.BatchNorm1d(6))
    theirs.add_module("fc", nn.Linear(6, 5))
    ours = Shifted(6)
    parity.randomize(ours, theirs)
    report = parity.check(ours, theirs, np.random.default_rng(0).normal(size=(8, 6)), checks=("activations",))
    assert report.findings[0].where == "between bn1 and fc"
    assert "fc agrees on PyTorch's input" in report.findings[0].cause


class Bare(nnx.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (*pair(), np.zeros((0, 8, 8, 3), np.float32)), "the inputs are empty"),
        (lambda: (*pair(), np.zeros((2, 8, 8, 3), np.uint8)), "the inputs are uint8"),
        (lambda: (*pair(), np.full((2, 8, 8, 3), np.nan, np.float32)), "NaN or infinite"),
        (lambda: (Bare(), torch_net(), parity.random_inputs(EVEN)), "no parameters"),
        (lambda: (pair()[0], norm_pair(3)[1], parity.random_inputs(EVEN)), "do not correspond"),
        (
            lambda: (*pair(), parity.random_inputs((2, 3, 16, 16))),
            "neither network runs on these inputs .*channels last.*looks like PyTorch's",
        ),
        (
            lambda: (*reversed(pair()), parity.random_inputs(EVEN)),
            "neither network runs on these inputs .as PyTorch takes them: channels second",
        ),
        (
            lambda: (pair()[0], pair()[1].state_dict(), parity.random_inputs(EVEN)),
            "found collections.OrderedDict",
        ),
        (lambda: (type(pair()[0]), pair()[1], parity.random_inputs(EVEN)), "found the class "),
        (lambda: (*pair(), EVEN), "inputs is one array .* found a tuple"),
    ],
)
def test_unusable_input_is_refused_in_words(arguments, message):
    with pytest.raises(parity.ParityError, match=message):
        parity.check(*arguments(), checks=("forward",))


def test_networks_in_the_wrong_order_are_told_so():
    ours, theirs = pair()
    for call in (
        lambda: parity.randomize(theirs, ours),
        lambda: parity.to_flax(theirs, ours),
        lambda: parity.to_flax(ours, theirs.state_dict()),
        lambda: parity.to_torch(theirs),
        lambda: parity.to_torch(ours, like=theirs),
    ):
        with pytest.raises(parity.ParityError, match=r"(expected|takes) .*, found "):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda outputs, targets: 0.0}, "loss is a pair of functions"),
        ({"steps": 0}, "steps is 0"),
        ({"optimizer": "adagrad"}, "no optimiser 'adagrad': sgd, adam and adamw"),
        ({"names": {"stem": "conv1"}}, "the Flax network has no module 'stem'"),
        ({"checks": ("backward",)}, "no check named backward"),
        ({"checks": ()}, "checks is empty; there are"),
        ({"device": "cuda:99"}, "PyTorch cannot compute on 'cuda:99'"),
        ({"precision": "float16"}, "no precision named 'float16'"),
    ],
)
def test_unusable_options_are_refused_in_words(options, message):
    with pytest.raises(parity.ParityError, match=message):
        parity.check(*pair(), parity.random_inputs(EVEN), **options)


@pytest.mark.parametrize("shape", [4, (4, -1), (4, 2.0)])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(parity.ParityError, match="expected a shape such as"):
        parity.random_inputs(shape)


def test_a_network_without_values_is_refused():
    abstract = nnx.eval_shape(lambda: pair()[0])
    for call in (
        lambda: parity.to_torch(abstract),
        lambda: parity.check(abstract, pair()[1], parity.random_inputs(EVEN)),
    ):
        with pytest.raises(parity.ParityError, match="has no values yet"):
            call()


def test_outputs_of_different_structure_are_refused():
    class ScoresOnly(TorchMLP):
        def forward(self, tokens):
            return super().forward(tokens)["scores"]

    ours, theirs = FlaxMLP(nnx.Rngs(0)), ScoresOnly()
    parity.randomize(ours, theirs)
    with pytest.raises(parity.ParityError, match=r"output\.pooled, output\.scores from Flax, output from PyTorch"):
        parity.check(ours, theirs, np.zeros((2, 3), int), checks=("forward",))


def test_a_layer_without_a_rule_says_how_to_add_one():
    class Attention(nnx.Module):
        def __init__(self):
            self.attention = nnx.LoRA(4, 2, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.attention(x)

    with pytest.raises(parity.ParityError, match=r"attention is a flax LoRA.*parity.register_layer"):
        parity.check(Attention(), nn.Linear(4, 4), np.ones((2, 4), np.float32))


@pytest.mark.parametrize(("option", "value"), [("checks", ("forwards",)), ("precision", "float16")])
def test_names_that_do_not_exist_are_listed(option, value):
    with pytest.raises(parity.ParityError, match=r"no (check|precision) named"):
        parity.check(*pair(), parity.random_inputs(EVEN), **{option: value})


def test_an_inplace_relu_does_not_reach_the_recording():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    x = torch.randn(8, 4)
    kept = []
    handle = net[0].register_forward_hook(lambda _module, _args, output: kept.append(output))  # the trap
    with recording_torch(net) as recorder, torch.no_grad():
        net(x)
    handle.remove()
    assert (kept[0] >= 0).all()
    assert (recorder.outputs["0"] < 0).any()
    assert torch.equal(recorder.inputs["1"], recorder.outputs["0"])


def test_recording_numbers_repeated_calls_and_counts_super_once():
    class Shifted(nnx.Linear):
        def __call__(self, x):
            return super().__call__(x) + 1

    class Twice(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.shifted = Shifted(3, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.shifted(self.layer(self.layer(x)))

    model = Twice()
    with recording_flax(model) as recorder:
        output = model(jnp.ones((1, 3)))
    assert list(recorder.outputs) == ["layer", "layer#2", "shifted"]
    assert jnp.array_equal(recorder.outputs["shifted"], output)
    assert jnp.array_equal(recorder.inputs["layer#2"], recorder.outputs["layer"])


def test_a_gradient_that_is_only_rounding_is_measured_against_the_model():
    """A bias in front of a BatchNorm: relative to itself its error is 100 %, in PyTorch too."""
    oracle = {"gradients": {"conv.bias": np.array([1e-16, -2e-16]), "fc.weight": np.array([1.0, -2.0, 0.5])}}
    other = {"gradients": {"conv.bias": np.array([-1e-16, 3e-16]), "fc.weight": np.array([1.0, -2.0, 0.5])}}
    alone, scaled = Noise(oracle), Noise(oracle, scaled=("gradients",))
    for noise in (alone, scaled):
        noise.add(other)
    assert alone.floors["gradients"]["conv.bias"] > 1
    assert scaled.floors["gradients"]["conv.bias"] < 1e-15


def test_measures():
    error = measure(np.array([3.0, 4.0]), np.array([3.0, 5.0]), precision="float32")
    assert error.max_abs == 1
    assert error.relative == pytest.approx(1 / np.sqrt(34))
    assert error.ulp == 2.0**21  # at 5, float32 has 2**-21 between neighbours
    assert error.cosine == pytest.approx(29 / (5 * np.sqrt(34)))
    assert measure(np.array([100.0, 1.0]), np.array([100.0, 2.0])).relative == pytest.approx(1 / np.sqrt(10004))
    assert measure(np.array([1e5, 1.0]), np.array([1e5, 2.0])).relative == 0.5  # far larger than all else: a mask too
    assert measure(np.array([-1e9, 1.0]), np.array([-1e9, 2.0])).relative == 0.5  # a mask's value counts for nothing
    assert measure(np.array([0.0, 2.0]), np.array([-1e9, 2.0])).relative == 1
    assert np.isnan(measure(np.array([np.nan]), np.array([1.0])).relative)
    assert measure(np.array([1.0]), np.array([0.0])).relative == np.inf
    # A scale is a size for each value: four zeros count as 2 x 0.5 long.
    assert measure(np.full(4, 0.1), np.zeros(4), scale=0.5).relative == pytest.approx(0.2)
    assert all(dataclasses.replace(profile).k >= 2 for profile in PROFILES.values())


def test_agreement_counts_rows_with_the_same_largest_logits():
    oracle, ours = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), np.array([[2.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    assert agreement(ours, oracle, 1) == 0.5
    assert agreement(ours, oracle, 2) == 1.0


def test_every_step_has_a_batch_of_its_own():
    with jax.enable_x64(True):
        two = make_pair(*norm_pair(6), parity.random_inputs((8, 6)))
    batches = [two.batch(step) for step in range(3)]
    for ours, theirs in batches:
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(batches[0][0], two.inputs.candidate)
    means = [ours.mean() for ours, _ in batches]
    deviations = [ours.std() for ours, _ in batches]
    assert len(set(np.round(means, 3))) == len(set(np.round(deviations, 3))) == 3


def test_statistics_go_on_from_batch_to_batch(monkeypatch):
    counts, load = [], Pair.load

    def spy(pair, state):
        counts.extend(int(value) for name, value in state.items() if name.endswith("num_batches_tracked"))
        load(pair, state)

    monkeypatch.setattr(Pair, "load", spy)
    ours, theirs = norm_pair(6)
    start = next(int(value) for name, value in theirs.state_dict().items() if name.endswith("num_batches_tracked"))
    parity.check(ours, theirs, parity.random_inputs((8, 6)), checks=("batch_stats",))
    assert counts == [start + 1, start + 2, start + 3]


def test_both_trainers_carry_parameters_and_statistics_on():
    with jax.enable_x64(True):
        two = make_pair(*norm_pair(6, BatchNorm), parity.random_inputs((8, 6)))
        before = two.candidate.state()
        for side, inputs, targets in zip((two.candidate, two.oracle), two.batch(0), two.targets, strict=True):
            side.trainer(two.optimizer).step(0, inputs, targets, two.loss)
    ours, theirs = two.candidate.state(), two.oracle.state()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-12, atol=1e-14)
        assert (value != before[name]).any(), name


def test_every_step_starts_from_pytorchs_moments(monkeypatch):
    taken = []
    monkeypatch.setattr(FlaxTrainer, "take_moments", lambda trainer, kept, step: taken.append((step, set(kept))))
    parity.check(*norm_pair(6), parity.random_inputs((8, 6)), checks=("optimizer",), steps=2)
    names = {name for name, _ in norm_pair(6)[1].named_parameters()}
    assert taken == [(1, names), (2, names)]


def test_a_floor_is_the_largest_of_all_rearrangements():
    noise = Noise({"parameters": {"a": np.array([1.0])}, "gradient": {"b": np.array([3.0]), "c": np.array([4.0])}},
                  scaled={"gradient"})  # fmt: skip
    for distance in (0.01, 0.05, 0.02):
        moved = {"b": np.array([3 + distance]), "c": np.array([4.0])}
        noise.add({"parameters": {"a": np.array([1 - distance])}, "gradient": moved})
    assert noise.floors["parameters"]["a"] == pytest.approx(0.05)
    assert noise.floors["gradient"]["b"] == pytest.approx(0.05 / np.sqrt(12.5))  # of the root mean square of 3 and 4
    assert noise.floors["gradient"]["c"] == 0


def test_another_width_is_listed_before_anything_is_computed():
    """The width formula without its groups, as a ResNeXt would get it wrong."""
    blocks = torchvision.models.resnet
    theirs = blocks.Bottleneck(16, 4, groups=2, base_width=64)

    class Narrow(Bottleneck):
        def __init__(self, shape, **options):
            super().__init__(dataclasses.replace(shape, groups=1), **options)

    layers = {"conv": partial(Conv, rngs=nnx.Rngs(0)), "norm": partial(BatchNorm, rngs=nnx.Rngs(0))}
    ours = Narrow(Shape(16, 4, groups=2), **layers)
    with pytest.raises(parity.ParityError, match=r"conv1.weight: \(4, 16, 1, 1\) in .*, \(8, 16, 1, 1\) in"):
        parity.check(ours, theirs, parity.random_inputs((2, 4, 4, 16)))
