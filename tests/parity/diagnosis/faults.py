"""A small network in both frameworks, and every way known to us of getting the Flax one wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchvision
from flax import nnx
from torch import nn

import parity
from parity.reports.results import Report
from resnet_flax.layers import BatchNorm, Conv, Linear, Sequential, initializers, max_pool
from resnet_flax.models import Bottleneck
from resnet_flax.models.blocks import Shape

torch.set_num_threads(1)  # on tensors this small, waiting for a second thread takes most of the time

SHAPE = (4, 16, 26, 3)


class TorchNet(nn.Module):
    """A stem, two bottlenecks, a square linear layer and a head; `signed` has no ReLU in front of the max-pool."""

    def __init__(self, signed: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = torchvision.models.resnet.Bottleneck
        self.layer1 = nn.Sequential(block(8, 4, 1, self._shortcut(8, 16, 1)))
        self.layer2 = nn.Sequential(block(16, 8, 2, self._shortcut(16, 32, 2)))
        self.neck = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 10)
        self.signed = signed

    @staticmethod
    def _shortcut(before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        x = self.maxpool(x if self.signed else torch.relu(x))
        x = self.layer2(self.layer1(x)).mean((2, 3))
        return self.fc(torch.relu(self.neck(x)))


class FlaxNet(nnx.Module):
    """The same, from layers that may be faulty."""

    def __init__(self, *, conv=Conv, norm=BatchNorm, block=Bottleneck, pool=None, signed=False, seed=0):
        rngs = nnx.Rngs(seed)
        conv, norm = partial(conv, rngs=rngs), partial(norm, rngs=rngs)
        self.conv1 = conv(3, 8, 7, stride=2, padding=3)
        self.bn1 = norm(8)
        self.layer1 = Sequential([block(Shape(8, 4), conv=conv, norm=norm)])
        self.layer2 = Sequential([block(Shape(16, 8, stride=2), conv=conv, norm=norm)])
        self.neck = Linear(32, 32, rngs=rngs)
        self.fc = Linear(32, 10, rngs=rngs)
        self.pool = pool or partial(max_pool, window=3, stride=2, padding=1)
        self.signed = signed

    def __call__(self, x):
        x = self.bn1(self.conv1(x))
        x = self.pool(x if self.signed else nnx.relu(x))
        x = self.layer2(self.layer1(x)).mean((1, 2))
        return self.fc(nnx.relu(self.neck(x)))


@cache
def torch_net(signed: bool = False) -> TorchNet:
    """Random weights that hide nothing; nothing may change it."""
    torch.manual_seed(0)
    network = TorchNet(signed)
    parity.randomize(None, network)
    return network


def pair(signed: bool = False, **faults: Any) -> tuple[nnx.Module, nn.Module]:
    """The Flax network, faulty or not, with PyTorch's weights, and the PyTorch one."""
    theirs = torch_net(signed)
    # Abstract until it is filled: drawing random numbers that nobody needs takes longer than the check.
    return parity.to_flax(theirs.state_dict(), nnx.eval_shape(lambda: FlaxNet(signed=signed, **faults))), theirs


# Faulty layers.


class SameConv(Conv):
    """Pads as Flax's "SAME"."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if self.kernel_size == (3, 3):
            self.padding = "SAME"


class V1Bottleneck(Bottleneck):
    """Has the stride in its first 1x1 convolution."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.conv1.strides, self.conv2.strides = self.conv2.strides, self.conv1.strides


class AlwaysTraining(BatchNorm):
    """Ignores eval mode."""

    def __call__(self, x, use_running_average=None):
        return super().__call__(x, use_running_average=False)


class Float32Statistics(BatchNorm):
    """Keeps its running statistics in float32 whatever its parameters are."""

    def __call__(self, x, use_running_average=None):
        y = super().__call__(x, use_running_average)
        for statistic in (self.mean, self.var):
            statistic[...] = statistic[...].astype(jnp.float32).astype(statistic.dtype)
        return y


def flax_norm(features: int, **options: Any) -> nnx.BatchNorm:
    """Flax's own, with nothing set but the momentum."""
    return nnx.BatchNorm(features, **{"momentum": 0.9, **options})


def same_pool(x):
    return nnx.max_pool(x, (3, 3), (2, 2), "SAME")


def zero_pool(x):
    return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2), "VALID")


@jax.custom_jvp
def eightfold(x):
    """The identity with a gradient eight times too large."""
    return x


eightfold.defjvp(lambda primals, tangents: (primals[0], 8 * tangents[0]))


class SummedGradients(FlaxNet):
    def __call__(self, x):
        return eightfold(super().__call__(x))


class StoppedGradient(FlaxNet):
    def __call__(self, x):
        x = jax.lax.stop_gradient(nnx.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(self.pool(x))).mean((1, 2))
        return self.fc(nnx.relu(self.neck(x)))


class Flattening(nnx.Module):
    """A convolution and a linear layer on its flattened output, channels last."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), padding=[(1, 1), (1, 1)], rngs=rngs)
        self.fc = nnx.Linear(4 * 5 * 6, 7, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
        return self.fc(x.reshape(len(x), -1))


class TorchFlattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 5 * 6, 7)

    def forward(self, x):
        return self.fc(nn.functional.max_pool2d(self.conv(x).relu(), 2).flatten(1))


def flattening() -> tuple[nnx.Module, nn.Module, np.ndarray]:
    ours, theirs = Flattening(nnx.Rngs(0)), TorchFlattening()
    parity.randomize(ours, theirs)
    return ours, theirs, parity.random_inputs((2, 10, 12, 3))


class NormOnly(nnx.Module):
    """A normalisation and a linear layer."""

    def __init__(self, features: int, norm=flax_norm):
        self.bn1 = norm(features, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(features, 5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.fc(self.bn1(x))


def norm_pair(features: int, norm=flax_norm) -> tuple[nnx.Module, nn.Module]:
    theirs = nn.Sequential()
    theirs.add_module("bn1", nn.BatchNorm1d(features))
    theirs.add_module("fc", nn.Linear(features, 5))
    ours = NormOnly(features, norm)
    parity.randomize(ours, theirs)
    return ours, theirs


# The table.


@dataclass(frozen=True, eq=False)
class Fault:
    """A fault, and who catches it.

    Attributes:
        what: the fault, as the documentation has it.
        check: the check that catches it.
        plant: makes the faulty pair, and the inputs where they matter.
        diagnosis: what the diagnosis must say.
    """

    what: str
    check: str
    plant: Callable[[], tuple]
    diagnosis: str
    options: dict[str, Any] = field(default_factory=dict)


def with_value(change: Callable[[Any], None], **faults: Any) -> Callable[[], tuple]:
    """A pair whose Flax network was changed after loading."""

    def plant() -> tuple:
        ours, theirs = pair(**faults)
        change(ours)
        return ours, theirs

    return plant


def swapped(variable: nnx.Variable, *axes: int) -> None:
    variable.set_value(jnp.asarray(np.swapaxes(np.asarray(variable.get_value()), *axes)))


def aliased() -> tuple:
    """Loads as a careless converter would: by views of PyTorch's memory."""
    ours, _ = pair()
    theirs = TorchNet()
    parity.randomize(None, theirs)
    ours = parity.to_flax(theirs.state_dict(), ours)
    ours.bn1.mean.set_value(jax.device_put(theirs.bn1.running_mean.numpy()))
    return ours, theirs


def faulty_loss(kind: type[FlaxNet]) -> Callable[[], tuple]:
    return lambda: (parity.to_flax(torch_net().state_dict(), nnx.eval_shape(kind)), torch_net())


class FlaxStem(nnx.Module):
    """A convolution and a norm as their constructors leave them, large enough to tell distributions apart."""

    def __init__(self, kernel_init=initializers.kaiming_normal, gamma=1.0):
        self.conv1 = Conv(32, 64, 3, kernel_init=kernel_init, rngs=nnx.Rngs(0))
        self.bn1 = BatchNorm(64, rngs=nnx.Rngs(0))
        self.bn1.scale[...] *= gamma

    def __call__(self, x):
        return self.bn1(self.conv1(x))


def fresh(**faults: Any) -> tuple:
    torch.manual_seed(1)
    theirs = nn.Sequential()
    theirs.add_module("conv1", nn.Conv2d(32, 64, 3, bias=False))
    theirs.add_module("bn1", nn.BatchNorm2d(64))
    nn.init.kaiming_normal_(theirs.conv1.weight, mode="fan_out", nonlinearity="relu")  # torchvision's
    return FlaxStem(**faults), theirs, parity.random_inputs((2, 4, 4, 32))


def sgd(*transforms: optax.GradientTransformation, **options: Any) -> dict[str, Any]:
    settings = {"learning_rate": 0.1, "weight_decay": 0.05, **options}
    return {
        "optimizer": parity.Optimizer(transform=optax.chain(*transforms, optax.scale(-1.0)), **settings),
        "steps": 2,
    }


decay, momentum = optax.add_decayed_weights(0.05), optax.trace(0.9)
matrices_only = optax.add_decayed_weights(0.05, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
off_centre = np.random.default_rng(0).normal(1000, 0.1, (64, 8))


def far_norm_pair() -> tuple:
    """Statistics and inputs that bfloat16 rounds coarsely."""
    ours, theirs = norm_pair(64)
    generator = np.random.default_rng(0)
    mean = generator.uniform(2, 4, 64).astype(np.float32)
    theirs.bn1.running_mean.copy_(torch.from_numpy(mean))
    inputs = (mean + generator.normal(size=(256, 64))).astype(np.float32)
    # What a layer in bfloat16 would hand over.
    inputs = torch.from_numpy(inputs).bfloat16().float().numpy()
    return parity.to_flax(theirs.state_dict(), ours), theirs, inputs


FAULTS = (
    Fault('`padding="SAME"` at stride 2', "activations", lambda: pair(conv=SameConv),
          "padding of layer2.0.conv2 is SAME, PyTorch's is 1"),
    Fault("max-pool with padding SAME", "activations", lambda: pair(pool=same_pool), "max-pool has padding SAME"),
    Fault("max-pool padded with zeros, on signed values", "activations",
          lambda: pair(pool=zero_pool, signed=True), "max-pool pads with zeros"),
    Fault("features flattened with channels last", "activations", flattening,
          "fc takes features flattened with the 4 channels last"),
    Fault("BN momentum left at Flax's 0.99", "batch_stats", lambda: pair(norm=partial(BatchNorm, momentum=0.99)),
          "BN momentum of bn1 is 0.99, but PyTorch's 0.1 is Flax's 0.9"),
    Fault("BN momentum 0.1 taken over as it is", "batch_stats", lambda: pair(norm=partial(BatchNorm, momentum=0.1)),
          "BN momentum of bn1 is 0.1, but PyTorch's 0.1 is Flax's 0.9"),
    Fault("biased running variance", "batch_stats", lambda: pair(norm=flax_norm), "running variance of bn1 is biased"),
    Fault("one value per channel in train mode", "forward",
          lambda: (*norm_pair(6), np.random.default_rng(0).normal(size=(1, 6))), "one value per channel in train mode"),
    Fault("variance as E[x^2] - E[x]^2", "activations",
          lambda: (*norm_pair(8), off_centre), "use_fast_variance of bn1"),
    Fault("BN statistics cast to bfloat16", "layers", far_norm_pair,
          "bn1 casts its statistics, scale and bias to bfloat16", {"precision": "bfloat16"}),
    Fault("BN statistics kept in float32", "batch_stats", lambda: pair(norm=Float32Statistics),
          "running statistics of bn1 are kept in float32"),
    Fault("BN in train mode during evaluation", "activations", lambda: pair(norm=AlwaysTraining),
          "eval ran in train mode: bn1 normalises with the batch's statistics"),
    Fault("BN epsilon 1e-3", "activations", lambda: pair(norm=partial(BatchNorm, epsilon=1e-3)),
          "epsilon of bn1 is 0.001, PyTorch's is 1e-05"),
    Fault("square linear kernel not transposed", "forward", with_value(lambda net: swapped(net.neck.kernel, 0, 1)),
          "the kernel is not transposed as PyTorch's: input and output channels are swapped"),
    Fault("3x3 kernel with height and width swapped", "forward",
          with_value(lambda net: swapped(net.layer1[0].conv2.kernel, 0, 1)),
          "the kernel is not transposed as PyTorch's: height and width are swapped"),
    Fault("stride in the first 1x1 (v1)", "activations", lambda: pair(block=V1Bottleneck),
          "the stride of layer2.0 sits in conv1, in PyTorch in conv2"),
    Fault("Flax's default initialisation", "initialization",
          lambda: fresh(kernel_init=nnx.initializers.lecun_normal()),
          "a truncated N(0, 1 / fan_in) (LeCun, Flax's default), PyTorch's from N(0, 2 / fan_out)"),
    Fault("gamma initialised to zero", "initialization", lambda: fresh(gamma=0.0),
          "bn1.weight starts from 0, PyTorch's from 1"),
    Fault("weight decay decoupled in SGD", "optimizer", pair, "weight decay is decoupled", sgd(momentum, decay)),
    Fault("weight decay without biases and norms", "optimizer", pair, "weight decay leaves out biases and norms",
          sgd(matrices_only, momentum)),
    Fault("weight decay missing", "optimizer", pair, "weight decay is missing", sgd(momentum)),
    Fault("AdamW's weight decay coupled", "optimizer", pair, "weight decay is coupled",
          sgd(decay, optax.scale_by_adam(), kind="adamw")),
    Fault("Nesterov's momentum instead of plain", "optimizer", pair, "Nesterov's momentum is on",
          sgd(decay, optax.trace(0.9, nesterov=True))),
    Fault("gradients summed over 8 devices", "optimizer", pair, "gradients 8 times PyTorch's",
          sgd(optax.scale(8.0), decay, momentum)),
    Fault("gradients summed over 8 devices, in the network", "gradients", faulty_loss(SummedGradients),
          "every gradient is 8 times PyTorch's"),
    Fault("gradient stopped after the stem", "gradients", faulty_loss(StoppedGradient), "it is stopped on the way"),
    Fault("`num_batches_tracked` lost", "weights",
          with_value(lambda net: net.bn1.num_batches_tracked.set_value(jnp.zeros((), jnp.int32))),
          "bn1.num_batches_tracked differs from PyTorch's before anything is computed"),
    Fault("a layer left random by a lenient loader", "weights",
          with_value(lambda net: net.fc.kernel.set_value(FlaxNet(seed=5).fc.kernel.get_value())),
          "fc.weight differs from PyTorch's before anything is computed: another value"),
    Fault("arrays that share PyTorch's memory", "weights", aliased, "shares its memory with PyTorch's tensor"),
)  # fmt: skip


@cache
def outcome(fault: Fault) -> Report:
    """What the fault's own check and its diagnosis make of it."""
    ours, theirs, *inputs = fault.plant()
    x = inputs[0] if inputs else parity.random_inputs(SHAPE)
    options: dict[str, Any] = dict(fault.options)
    return parity.check(ours, theirs, x, checks=(fault.check,), **options)
