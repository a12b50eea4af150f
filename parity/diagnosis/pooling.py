"""Pooling with another padding, window, stride, divisor or operation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments, as_pair, changed, kind, spelt
from parity.diagnosis.program import Call, Replacement


@alters("max_pool", "avg_pool")
def pool(call: Call) -> Variants:
    settings, count = arguments(call), call.args[0].ndim - 2
    if count < 1:
        return
    window = as_pair(settings["kernel_size"], count)
    stride = as_pair(settings.get("stride") or window, count)
    padding = as_pair(settings.get("padding", 0), count)
    average = kind(call) == "avg_pool"
    what = "avg-pool" if average else "max-pool"
    ceil = settings.get("ceil_mode", False)
    yield f"the {what} has ceil_mode={not ceil}, PyTorch's {ceil}", changed(ceil_mode=not ceil)
    if average and any(padding):
        included = settings.get("count_include_pad", True)
        yield (
            f"the avg-pool has count_include_pad={not included}, PyTorch's {included}",
            changed(count_include_pad=not included),
        )
    same = [_same(size, w, s) for size, w, s in zip(call.args[0].shape[2:], window, stride, strict=True)]
    paddings = {"SAME": same, "0": [(0, 0)] * count, "1": [(1, 1)] * count}
    for words, pads in paddings.items():
        if words == spelt(padding):
            continue
        yield (
            f"the {what} has padding {words}, PyTorch's {spelt(padding)}",
            _padded(average, window, stride, pads, True),
        )
        if average and words != "0":
            yield (
                f"the avg-pool has padding {words} and does not count it, PyTorch's has padding {spelt(padding)}",
                _padded(average, window, stride, pads, False),
            )
    if not average and any(padding):
        yield (
            f"the max-pool pads with zeros, PyTorch's {spelt(padding)} on every side with minus infinity",
            _padded(False, window, stride, [(p, p) for p in padding], True, 0.0),
        )
    for size in {1, 2, 3, *window} - {stride[0]}:
        yield f"the {what} has stride {size}, PyTorch's {spelt(stride)}", changed(stride=size)
    for size in {2, 3, 4} - {window[0]}:
        yield f"the {what} has a window of {size}, PyTorch's {spelt(window)}", changed(kernel_size=size, stride=stride)
    pads = [(p, p) for p in padding]
    other = "max" if average else "average"
    yield (
        f"the pooling takes the {other}, PyTorch's the {'average' if average else 'max'}",
        _padded(not average, window, stride, pads, True),
    )
    if max(stride) == 1:
        yield f"the {what} is left out", lambda call, _: call.args[0]
    for words, is_average in (("max-pool", False), ("avg-pool", True)):
        first = _padded(is_average, (3,) * count, (1,) * count, [(1, 1)] * count, True)
        yield f"a {words} of window 3 and stride 1 comes before the {what}, in PyTorch none does", _after(first)


@alters("mean", "adaptive_avg_pool")
def global_average(call: Call) -> Variants:
    dims = _dims(call)
    if dims:
        keep = call.output.ndim == call.args[0].ndim
        yield "the maximum is taken where PyTorch takes the mean", _reduced(torch.amax, dims, keep)
        yield "the sum is taken where PyTorch takes the mean", _reduced(torch.sum, dims, keep)
        yield "the first position is taken where PyTorch takes the mean", _taken(dims, keep, 0)
        yield "the last position is taken where PyTorch takes the mean", _taken(dims, keep, -1)


@alters("amax", "adaptive_max_pool")
def global_maximum(call: Call) -> Variants:
    dims = _dims(call)
    if dims:
        keep = call.output.ndim == call.args[0].ndim
        yield "the mean is taken where PyTorch takes the maximum", _reduced(torch.mean, dims, keep)


def _after(first: Replacement) -> Replacement:
    return lambda call, calls: call.function(first(call, calls), *call.args[1:], **call.kwargs)


def _dims(call: Call) -> tuple[int, ...]:
    if kind(call).startswith("adaptive"):
        sizes = as_pair(call.args[1] if len(call.args) > 1 else call.kwargs["output_size"], call.args[0].ndim - 2)
        return tuple(range(2, call.args[0].ndim)) if set(sizes) == {1} else ()
    dims = arguments(call).get("dim")
    return () if dims is None else as_pair(dims, 1)


def _reduced(function: Callable[..., Any], dims: tuple[int, ...], keep: bool) -> Replacement:
    return lambda call, _: function(call.args[0], dims, keepdim=keep)


def _taken(dims: tuple[int, ...], keep: bool, position: int) -> Replacement:
    def replaced(call: Call, _: Any) -> torch.Tensor:
        x = call.args[0]
        for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
            x = x.select(dim, position).unsqueeze(dim) if keep else x.select(dim, position)
        return x

    return replaced


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _padded(
    average: bool,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    pads: list[tuple[int, int]],
    counted: bool,
    value: float = -torch.inf,
) -> Replacement:
    flat = [p for pair in reversed(pads) for p in pair]

    def replaced(call: Call, _: Any) -> torch.Tensor:
        x = call.args[0]
        functions = (
            (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d) if average else (F.max_pool1d, F.max_pool2d, F.max_pool3d)
        )
        function = functions[x.ndim - 3]
        if not average:
            return function(F.pad(x, flat, value=value), window, stride)
        output = function(F.pad(x, flat), window, stride)
        return output if counted else output / function(F.pad(torch.ones_like(x), flat), window, stride)

    return replaced
