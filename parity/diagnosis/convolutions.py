"""Convolutions with another padding, padding mode, stride, dilation or kernel, and transposed ones."""

from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments, as_pair, changed, is_tensor, spelt
from parity.diagnosis.program import Call, Replacement

MODES = ("constant", "reflect", "replicate", "circular")
_WORDS = {"constant": "zeros", "replicate": "edge (replicate)", "circular": "circular", "reflect": "reflect"}


@alters("conv")
def convolution(call: Call) -> Variants:
    settings, count = arguments(call), call.args[0].ndim - 2
    if count < 1:
        return
    stride, dilation = (as_pair(settings.get(name, 1), count) for name in ("stride", "dilation"))
    given = settings.get("padding", 0)
    weight = settings["weight"]
    window = [(size - 1) * d + 1 for size, d in zip(weight.shape[2:], dilation, strict=True)]
    padding = (
        {"valid": (0,) * count, "same": tuple(w // 2 for w in window)}[given]
        if isinstance(given, str)
        else as_pair(given, count)
    )
    theirs = f"PyTorch's {spelt(padding)}"
    same = []
    for size, w, s in zip(call.args[0].shape[2:], window, stride, strict=True):
        total = max((-(-size // s) - 1) * s + w - size, 0)
        same.append((total // 2, total - total // 2))
    for words, pads in {
        "SAME": same,
        "0": [(0, 0)] * count,
        "1": [(1, 1)] * count,
        "only at the start (causal)": [(w - 1, 0) for w in window],
    }.items():
        if words != spelt(padding):
            yield f"the convolution has padding {words}, {theirs}", _padded("constant", pads)
    for mode in MODES[1:] if any(padding) else ():
        yield (
            f"the convolution pads by {_WORDS[mode]}, PyTorch with zeros",
            _padded(mode, [(p, p) for p in padding]),
        )
    for size in {1, 2, 3} - {stride[0]}:
        yield f"the convolution has stride {size}, PyTorch's {spelt(stride)}", changed(stride=size)
    for size in {1, 2, 3} - {dilation[0]}:
        yield f"the convolution has dilation {size}, PyTorch's {spelt(dilation)}", changed(dilation=size)
    yield from _kernels(call, count)


@alters("conv_transpose")
def transposed(call: Call) -> Variants:
    settings, count = arguments(call), call.args[0].ndim - 2
    if count < 1:
        return
    yield from _kernels(call, count)
    if not isinstance(call.output, torch.Tensor):
        return
    padding = as_pair(settings.get("padding", 0), count)
    extra = as_pair(settings.get("output_padding", 0), count)
    theirs = f"PyTorch's has padding {spelt(padding)} and output_padding {spelt(extra)}"
    for flip in (False, True):
        also = " and its kernel is flipped in space" if flip else ""
        for start in range(settings["weight"].shape[-1] + 1):
            if start != padding[0] or set(padding) != {start}:
                yield (
                    f"the transposed convolution's whole output is cut by {start} at its start{also}, {theirs}",
                    _cut(start, call.output.shape[2:], flip),
                )


@alters("linear")
def bias(call: Call) -> Variants:
    if is_tensor(arguments(call).get("bias")):
        yield "the bias is not added", changed(bias=None)


@alters("pad")
def pad(call: Call) -> Variants:
    settings = arguments(call)
    theirs = settings.get("mode", "constant")
    for mode in MODES:
        if mode != theirs:
            yield (
                f"the padding is by {_WORDS[mode]}, PyTorch's by {_WORDS[theirs]}",
                lambda call, _, mode=mode: F.pad(call.args[0], list(arguments(call)["pad"]), mode=mode),
            )
    pads = list(settings["pad"])
    swapped = [size for i in range(0, len(pads), 2) for size in (pads[i + 1], pads[i])]
    if swapped != pads:
        yield "the padding at start and end is swapped", changed(pad=swapped)
    turned = [size for i in range(len(pads) - 2, -1, -2) for size in pads[i : i + 2]]
    if turned != pads:
        yield "the padding of height and width is swapped", changed(pad=turned)


def _kernels(call: Call, count: int) -> Variants:
    settings = arguments(call)
    weight = settings["weight"]
    dims = tuple(range(2, 2 + count))
    if any(size > 1 for size in weight.shape[2:]):
        yield "the kernel is flipped in space", changed(weight=weight.flip(dims))
    if count == 2 and weight.shape[2] == weight.shape[3] > 1:
        yield "the kernel's height and width are swapped", changed(weight=weight.transpose(2, 3))
    if weight.shape[0] == weight.shape[1] > 1:
        yield "the kernel's input and output channels are swapped", changed(weight=weight.transpose(0, 1))
    if is_tensor(settings.get("bias")):
        yield "the bias is not added", changed(bias=None)


def _padded(mode: str, pads: list[tuple[int, int]]) -> Replacement:
    flat = [p for pair in reversed(pads) for p in pair]

    def replaced(call: Call, _: Any) -> torch.Tensor:
        return call.function(F.pad(call.args[0], flat, mode=mode), **{**arguments(call), "padding": 0})

    return replaced


def _cut(start: int, shape: tuple[int, ...], flip: bool) -> Replacement:
    def replaced(call: Call, _: Any) -> torch.Tensor:
        settings = {**arguments(call), "padding": 0, "output_padding": 0}
        bias = settings.pop("bias", None)
        if flip:
            settings["weight"] = settings["weight"].flip(tuple(range(2, settings["weight"].ndim)))
        whole = call.function(call.args[0], **settings)
        missing = [p for size, w in zip(reversed(shape), reversed(whole.shape[2:]), strict=True)
                   for p in (0, max(start + size - w, 0))]  # fmt: skip
        whole = F.pad(whole, missing)
        for axis, size in enumerate(shape):
            whole = whole.narrow(2 + axis, start, size)
        return whole if bias is None else whole + bias.view(-1, *[1] * len(shape))

    return replaced
