"""Normalisation with another epsilon, other axes or groups, another variance, or without its parameters."""

from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments, changed, computed, is_tensor, kind
from parity.diagnosis.program import Call, Replacement

EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 0.0, 1e-2)
_DEFAULT = {"normalize": 1e-12, "rms_norm": torch.finfo(torch.float64).eps}


@alters("layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_norm", "normalize")
def normalisation(call: Call) -> Variants:
    settings = arguments(call)
    theirs = settings.get("eps")
    theirs = _DEFAULT.get(kind(call), 1e-5) if theirs is None else theirs
    for epsilon in EPSILONS:
        if epsilon != theirs:
            yield f"epsilon is {epsilon:g}, PyTorch's is {theirs:g}", changed(eps=epsilon)
    if is_tensor(settings.get("weight")):
        yield "the norm's scale is not applied", changed(weight=None)
        yield "the norm multiplies by 1 + scale, PyTorch by scale", _one_added
        if is_tensor(settings.get("bias")):
            yield "the norm's scale and bias are not applied", changed(weight=None, bias=None)
    if is_tensor(settings.get("bias")):
        yield "the norm's bias is not applied", changed(bias=None)
    yield f"the {kind(call).replace('_', ' ')} of PyTorch is missing", computed(lambda x: x)


@alters("group_norm")
def groups(call: Call) -> Variants:
    theirs = arguments(call)["num_groups"]
    channels = call.args[0].shape[1]
    for count in range(1, channels + 1):
        if channels % count == 0 and count != theirs:
            yield f"the norm has {count} groups, PyTorch's {theirs}", changed(num_groups=count)
    yield (
        f"the norm's {theirs} groups are made of every {theirs}th channel, PyTorch's of neighbours",
        lambda call, _: _interleaved(call),
    )


@alters("layer_norm", "group_norm", "instance_norm", "rms_norm")
def statistics(call: Call) -> Variants:
    yield "the norm divides by the unbiased variance (n - 1), PyTorch by the biased one", _by_hand(call, correction=1)
    if kind(call) != "rms_norm":
        yield "the norm does not subtract the mean (an RMSNorm)", _by_hand(call, centred=False)
        yield "epsilon is added to the deviation, PyTorch adds it to the variance", _by_hand(call, outside=True)
    else:
        yield "the norm subtracts the mean (a LayerNorm), PyTorch's RMSNorm does not", _by_hand(call, centred=True)


@alters("layer_norm")
def axes(call: Call) -> Variants:
    if call.args[0].ndim > 2:
        yield (
            "the norm's statistics are over all axes but the first, PyTorch's over the last only",
            _by_hand(call, all=1),
        )


@alters("batch_norm")
def mode(call: Call) -> Variants:
    training = arguments(call).get("training", False)
    mine, theirs = ("running", "batch's") if training else ("batch's", "running")
    yield f"the norm uses the {mine} statistics, PyTorch the {theirs}", _other_mode


def _other_mode(call: Call, _: Any) -> torch.Tensor:
    names = ("running_mean", "running_var")
    settings = arguments(call)
    copies = {name: settings[name].clone() for name in names if is_tensor(settings.get(name))}
    return call.function(call.args[0], **{**settings, **copies, "training": not settings.get("training", False)})


@alters("var", "std")
def variance(call: Call) -> Variants:
    settings = arguments(call)
    correction = settings.get("correction", settings.get("unbiased", 1))
    correction = 1 if correction is None else int(correction)
    words = ("unbiased", "biased")
    yield (
        f"{call.name} is the {words[correction]} one, PyTorch's the {words[1 - correction]}",
        lambda call, _: getattr(torch, call.name)(
            call.args[0],
            **{"dim": settings.get("dim"), "keepdim": settings.get("keepdim", False), "correction": 1 - correction},
        ),
    )


@alters("add")
def added_epsilon(call: Call) -> Variants:
    """The epsilon of a norm that is written out."""
    if len(call.args) == 2 and isinstance(call.args[1], float) and 0 <= call.args[1] <= 1e-2:
        for epsilon in EPSILONS:
            if epsilon != call.args[1]:
                yield f"epsilon is {epsilon:g}, PyTorch's is {call.args[1]:g}", _adding(epsilon)


def _adding(epsilon: float) -> Replacement:
    return lambda call, _: call.args[0] + epsilon


def _one_added(call: Call, _: Any) -> Any:
    return changed(weight=1 + arguments(call)["weight"])(call, _)


def _interleaved(call: Call) -> torch.Tensor:
    """A group norm whose groups are the channels' remainders."""
    x, count = call.args[0], arguments(call)["num_groups"]
    order = torch.arange(x.shape[1]).reshape(-1, count).T.flatten()
    settings = arguments(call)
    weight, bias = (settings.get(name) for name in ("weight", "bias"))
    output = F.group_norm(x[:, order], count, eps=settings.get("eps", 1e-5))[:, torch.argsort(order)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    output = output if weight is None else output * weight.view(shape)
    return output if bias is None else output + bias.view(shape)


def _by_hand(
    call: Call, *, correction: int = 0, centred: Any = None, outside: bool = False, all: int = 0
) -> Replacement:
    which = kind(call)
    centred = which != "rms_norm" if centred is None else centred

    def replaced(call: Call, _: Any) -> torch.Tensor:
        x, settings = call.args[0], arguments(call)
        epsilon = settings.get("eps")
        epsilon = _DEFAULT.get(which, 1e-5) if epsilon is None else epsilon
        grouped, shape = x, None
        if which in ("group_norm", "instance_norm"):
            count = settings["num_groups"] if which == "group_norm" else x.shape[1]
            grouped, shape = x.reshape(len(x), count, -1), (1, -1, *[1] * (x.ndim - 2))
            dims: tuple[int, ...] = (2,)
        else:
            dims = tuple(range(1, x.ndim)) if all else tuple(range(-len(settings["normalized_shape"]), 0))
        rest = grouped - grouped.mean(dims, keepdim=True) if centred else grouped
        count = torch.Size([grouped.shape[dim] for dim in dims]).numel()
        variance = rest.square().sum(dims, keepdim=True) / (count - correction)
        output = rest / (variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt())
        output = output.reshape(x.shape)
        for name, apply in (("weight", torch.mul), ("bias", torch.add)):
            value = settings.get(name)
            if value is not None:
                output = apply(output, value if shape is None else value.view(shape))
        return output

    return replaced
