"""Faults planted where both networks are in JAX, NNX or Linen, each caught and named; PyTorch is not needed."""

from functools import partial

import flax.linen
import jax
import numpy as np
import pytest
from flax import nnx

import parity

IMAGES = parity.random_inputs((3, 7, 9, 4))
BY_ERF = partial(jax.nn.gelu, approximate=False)


class Net(nnx.Module):
    """A convolution, two norms with an activation between them, a residual branch and a layer."""

    def __init__(self, activation=jax.nn.relu, epsilon=1e-5, padding="SAME", groups=2, momentum=0.9):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(4, 8, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.bn = nnx.BatchNorm(8, momentum=momentum, rngs=rngs)
        self.branch = Branch(epsilon, groups, rngs)
        self.fc = nnx.Linear(8, 5, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        x = self.activation(self.bn(self.stem(x)))
        return self.fc(x.mean((1, 2)) + self.branch(x).mean((1, 2)))


class Branch(nnx.Module):
    def __init__(self, epsilon, groups, rngs):
        self.norm = nnx.GroupNorm(8, num_groups=groups, epsilon=epsilon, rngs=rngs)
        self.alike = nnx.Conv(8, 8, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.alike(self.norm(x))


class LinenNet(flax.linen.Module):
    """The same in Linen, whose names come in another order in the alphabet than in the computation."""

    activation: str = "relu"
    epsilon: float = 1e-5
    padding: str = "SAME"

    @flax.linen.compact
    def __call__(self, x, train: bool):
        x = flax.linen.Conv(8, (3, 3), strides=2, padding=self.padding, name="stem")(x)
        x = flax.linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="bn")(x)
        x = getattr(jax.nn, self.activation)(x)
        branch = LinenBranch(self.epsilon, name="branch")(x)
        return flax.linen.Dense(5, name="fc")(x.mean((1, 2)) + branch.mean((1, 2)))


class LinenBranch(flax.linen.Module):
    epsilon: float

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.GroupNorm(2, epsilon=self.epsilon, name="norm")(x)
        return flax.linen.Conv(8, (1, 1), name="alike")(x)


def linen(like, **options):
    """(network, variables), with the values of an NNX network."""
    network = LinenNet(**options)
    variables = network.init(jax.random.key(0), IMAGES, train=False)
    return network, parity.to_flax(parity.to_torch(like), variables)


def causes_of(ours, theirs):
    report = parity.check(ours, theirs, IMAGES, checks=("forward", "activations"), modes=("eval",))
    assert not report.passed
    return [(finding.where, finding.cause) for finding in report.findings]


PLANTED = {
    "activation": ({"activation": jax.nn.gelu}, {"activation": BY_ERF}, "branch",
                   "between bn and branch, GELU by tanh is applied where the reference applies GELU by erf"),
    "none": ({"activation": lambda x: x}, {}, "branch",
             "between bn and branch, no activation is applied where the reference applies ReLU or ReLU6"),
    "epsilon": ({"epsilon": 1e-5}, {"epsilon": 1e-3}, "branch.norm",
                "epsilon of branch.norm is 1e-05, the reference's is 0.001"),
    "padding": ({"padding": "VALID"}, {"padding": "SAME"}, "stem",
                "padding of stem is VALID, the reference's is SAME"),
    "groups": ({"groups": 4}, {}, "branch.norm",
               "group_size of branch.norm is 2, the reference's is 4; "
               "num_groups of branch.norm is 4, the reference's is 2"),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "where", "cause"), PLANTED.values(), ids=list(PLANTED))
def test_flax_against_flax(ours, theirs, where, cause):
    pair = Net(**ours), Net(**theirs)
    parity.randomize(*pair)
    assert causes_of(*pair) == [(where, cause)]


def test_several_at_once():
    pair = Net(epsilon=1e-3, activation=jax.nn.silu), Net()
    parity.randomize(*pair)
    assert causes_of(*pair) == [
        ("branch", "between bn and branch, SiLU is applied where the reference applies ReLU or ReLU6"),
        ("branch.norm", "epsilon of branch.norm is 0.001, the reference's is 1e-05"),
    ]


@pytest.mark.parametrize(("options", "cause"), [
    ({"epsilon": 1e-3}, ("branch.norm", "epsilon of branch.norm is {ours}, the reference's is {theirs}")),
    ({"activation": "silu"},
     ("branch", "between bn and branch, {ours} is applied where the reference applies {theirs}")),
])  # fmt: skip
@pytest.mark.parametrize("linen_is_reference", [True, False])
def test_linen_and_nnx(options, cause, linen_is_reference):
    plain = Net()
    parity.randomize(None, plain)
    values = ["SiLU", "ReLU or ReLU6"] if "activation" in options else ["0.001", "1e-05"]
    other = linen(plain, **options)
    pair = (plain, other) if linen_is_reference else (other, plain)
    ours, theirs = values[::-1] if linen_is_reference else values
    assert causes_of(*pair) == [(cause[0], cause[1].format(ours=ours, theirs=theirs))]


def test_between_linen_modules_the_place_is_the_first_in_the_computation():
    plain = Net()
    parity.randomize(None, plain)
    ((where, cause),) = causes_of(linen(plain, epsilon=1e-3), linen(plain))
    assert where == "branch.norm"
    assert cause.startswith("branch.norm differs on the reference's input")


def test_nothing_is_claimed_of_what_fits_no_hypothesis():
    class Scaled(Net):
        def __call__(self, x):
            x = self.activation(1.01 * self.bn(self.stem(x)) ** 2)
            return self.fc(x.mean((1, 2)) + self.branch(x).mean((1, 2)))

    pair = Scaled(), Net()
    parity.randomize(*pair)
    ((_, cause),) = causes_of(*pair)
    assert cause.startswith("every layer before it agrees: the difference arises between bn and branch")


def test_activations_that_these_values_do_not_tell_apart_are_all_named():
    """Where a norm's outputs are positive, ReLU is nothing."""
    ours, theirs = Net(activation=jax.nn.sigmoid), Net()
    parity.randomize(ours, theirs)
    for net in (ours, theirs):
        net.bn.bias[...] = np.full(8, 50.0, np.float32)
    ((_, cause), *_) = causes_of(ours, theirs)
    assert "tanh or sigmoid or hard sigmoid is applied where" in cause
    assert cause.endswith("the reference applies no activation or ReLU or GELU by tanh or others")


def test_the_order_is_that_of_the_computation():
    """The alphabet has bn, branch and fc before stem."""
    pair = Net(), Net()
    parity.randomize(*pair)
    order = ["stem", "bn", "branch.norm", "branch.alike", "branch", "fc"]
    report = parity.check(*pair, IMAGES, checks=("activations", "activation_gradients"), modes=("eval",))
    for check in ("activations", "activation_gradients"):
        assert [row.name for row in report.comparisons if row.check == check] == order


def test_flax_networks_are_filled_alike():
    ours, theirs = Net(momentum=0.5), Net()
    parity.randomize(ours, theirs, seed=3)
    for name, array in parity.to_torch(ours).items():
        np.testing.assert_array_equal(array, parity.to_torch(theirs)[name], err_msg=name)
        assert array.size == 1 or array.std() > 0
    with pytest.raises(parity.ParityError, match="expected a Flax network and then a PyTorch or another Flax one"):
        parity.randomize(ours, linen(theirs))
