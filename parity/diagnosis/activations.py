"""Another activation function, one too few, or one too many."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments, changed, computed
from parity.diagnosis.program import Call

Function = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Function] = {
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "GELU by erf": F.gelu,
    "quick GELU, x * sigmoid(1.702 x),": lambda x: x * torch.sigmoid(1.702 * x),
    "ReLU": torch.relu,
    "ReLU6": F.relu6,
    "squared ReLU": lambda x: torch.relu(x).square(),
    "SiLU": F.silu,
    "hardswish": F.hardswish,
    "ELU": F.elu,
    "SELU": F.selu,
    "softplus": F.softplus,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard sigmoid, relu6(x + 3) / 6,": F.hardsigmoid,
    "hard sigmoid, clip(0.2 x + 0.5),": lambda x: (0.2 * x + 0.5).clip(0, 1),
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
}
SLOPES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.3)
BETAS = (0.5, 1.0, 2.0, 100.0)

_NAMES = {
    "gelu": "GELU", "relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "hardswish": "hardswish", "elu": "ELU",
    "selu": "SELU", "softplus": "softplus", "mish": "mish", "tanh": "tanh", "sigmoid": "sigmoid",
    "hardsigmoid": "hard sigmoid", "hardtanh": "hardtanh", "leaky_relu": "leaky ReLU", "softsign": "softsign",
    "logsigmoid": "log sigmoid", "prelu": "PReLU",
}  # fmt: skip


@alters(*_NAMES)
def activation(call: Call) -> Variants:
    theirs = _spelt(call)
    for words, function in ACTIVATIONS.items():
        if words != theirs:
            yield f"{words} is applied where PyTorch applies {theirs}", computed(function)
    for slope in SLOPES:
        words = f"leaky ReLU with slope {slope:g}"
        if words != theirs:
            yield f"{words} is applied where PyTorch applies {theirs}", computed(_leaky(slope))
    for beta in BETAS if call.name == "softplus" else ():
        if beta != arguments(call).get("beta", 1):
            yield f"softplus has beta {beta:g}, PyTorch's is {arguments(call).get('beta', 1):g}", changed(beta=beta)
    for beta in (0.5, 2.0, 100.0) if call.name == "silu" else ():
        yield f"SiLU has beta {beta:g}, PyTorch's has 1", computed(_swish(beta))
    yield f"the {theirs} of PyTorch is missing", computed(lambda x: x)
    yield f"{theirs} is applied twice", lambda call, _: call.function(call.again(), *call.args[1:], **call.kwargs)
    yield f"1 - {theirs} is taken where PyTorch takes {theirs}", lambda call, _: 1 - call.again()


def additional() -> Iterator[tuple[str, Function]]:
    """Activations that may have been applied to what PyTorch leaves as it is."""
    for words, function in ACTIVATIONS.items():
        yield f"{words} is applied where PyTorch applies nothing", function
    for slope in SLOPES:
        yield f"leaky ReLU with slope {slope:g} is applied where PyTorch applies nothing", _leaky(slope)
    yield "a softmax over the last axis is applied where PyTorch applies none", lambda x: x.softmax(-1)
    yield "a log-softmax over the last axis is applied where PyTorch applies none", lambda x: x.log_softmax(-1)
    yield "the values are divided by their L2 norm where PyTorch leaves them", lambda x: F.normalize(x, dim=-1)


def _spelt(call: Call) -> str:
    settings = arguments(call)
    if call.name == "gelu":
        return "GELU by tanh" if settings.get("approximate") == "tanh" else "GELU by erf"
    if call.name == "leaky_relu":
        return f"leaky ReLU with slope {settings.get('negative_slope', 0.01):g}"
    return _NAMES[call.name]


def _leaky(slope: float) -> Function:
    return lambda x: F.leaky_relu(x, slope)


def _swish(beta: float) -> Function:
    return lambda x: x * torch.sigmoid(beta * x)
