"""Attention with another scale, softmax, mask, order of heads or rotary embedding."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from parity.diagnosis.alterations import Variants, alters, arguments, changed, is_tensor, kind
from parity.diagnosis.program import Call, Replacement


@alters("softmax", "log_softmax")
def softmax(call: Call) -> Variants:
    x = call.args[0]
    theirs = arguments(call).get("dim", -1) % x.ndim
    what = kind(call).replace("_", "-")
    for dim in range(x.ndim):
        if dim != theirs:
            yield f"the {what} is over axis {dim}, PyTorch's over axis {theirs}", _softmax(what, dim)
    yield f"the {what} of PyTorch is missing", lambda call, _: call.args[0]
    other = "log-softmax" if what == "softmax" else "softmax"
    yield f"a {other} is taken where PyTorch takes the {what}", _softmax(other, theirs)
    if what == "softmax":
        yield (
            "the softmax has one more logit of zero in its denominator",
            lambda call, _: call.args[0].exp() / (1 + call.args[0].exp().sum(theirs, keepdim=True)),
        )
        yield "a sigmoid is taken where PyTorch takes the softmax", lambda call, _: call.args[0].sigmoid()


def _softmax(what: str, dim: int) -> Replacement:
    function = torch.softmax if what == "softmax" else torch.log_softmax
    return lambda call, _: function(call.args[0], dim)


@alters("mul", "div")
def scale(call: Call) -> Variants:
    """A scale that is a number."""
    numbers = [value for value in call.args if isinstance(value, int | float)]
    if len(call.args) != 2 or len(numbers) != 1 or not numbers[0]:
        return
    number, tensor = numbers[0], next((value for value in call.args if is_tensor(value)), None)
    if tensor is None:
        return
    factor = number if kind(call) == "mul" else 1 / number
    root = math.sqrt(abs(factor))
    for words, other in {
        "is not applied": 1.0,
        "is applied twice": factor * factor,
        "is applied upside down": 1 / factor,
        "is applied as its square root": math.copysign(root, factor),
    }.items():
        if other != factor:
            yield f"PyTorch's scale of {factor:.6g} {words}", _scaled(other)


def _scaled(factor: float) -> Replacement:
    return lambda call, _: factor * next(value for value in call.args if is_tensor(value))


@alters("scaled_dot_product_attention")
def fused(call: Call) -> Variants:
    query, settings = call.args[0], arguments(call)
    width = query.shape[-1]
    theirs = settings.get("scale") or 1 / math.sqrt(width)
    scales = {
        "1": 1.0,
        "1 / width": 1 / width,
        "1 / sqrt(width of all heads)": 1 / math.sqrt(width * query.shape[-3]) if query.ndim > 3 else 1.0,
        "1 / sqrt(width of a head)": 1 / math.sqrt(width),
        "1 / sqrt(length)": 1 / math.sqrt(query.shape[-2]),
    }
    for words, value in scales.items():
        if not math.isclose(value, theirs):
            yield f"the attention's scale is {words}, PyTorch's is {theirs:.6g}", changed(scale=value)
    causal, mask = bool(settings.get("is_causal")), settings.get("attn_mask")
    if mask is None:
        words = "not causal, PyTorch's is" if causal else "causal, PyTorch's is not"
        yield f"the attention is {words}", changed(is_causal=not causal)
        if causal:
            yield "the attention sees one position ahead", _banded(1)
            yield "the attention does not see its own position", _banded(-1)
            yield (
                "the attention is causal backwards: it sees the position itself and later ones",
                _banded(0, upper=True),
            )
    elif mask.dtype is torch.bool:
        yield "the attention's mask is inverted (True where PyTorch has False)", changed(attn_mask=~mask)
        yield "the attention's mask is not applied", changed(attn_mask=None)
        yield "the attention's mask is added as numbers (True as 1)", changed(attn_mask=mask.to(query.dtype))
    else:
        yield "the attention's additive mask is not applied", changed(attn_mask=None)
        yield "the attention's additive mask has another sign", changed(attn_mask=-mask)
    if query.ndim == 4:
        yield "the softmax of the attention is over the queries, PyTorch's over the keys", _over_queries


def _banded(diagonal: int, *, upper: bool = False) -> Replacement:
    def replaced(call: Call, _: Any) -> torch.Tensor:
        query, key = call.args[0], arguments(call)["key"]
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
        mask = ones.triu(diagonal) if upper else ones.tril(diagonal)
        return changed(is_causal=False, attn_mask=mask)(call, [])

    return replaced


def _over_queries(call: Call, _: Any) -> torch.Tensor:
    settings = arguments(call)
    scores = call.args[0] @ settings["key"].mT * (settings.get("scale") or call.args[0].shape[-1] ** -0.5)
    return scores.softmax(-2) @ settings["value"]


@alters("masked_fill")
def masked(call: Call) -> Variants:
    mask = arguments(call)["mask"]
    yield "the mask is inverted (True where PyTorch has False)", changed(mask=~mask)
    yield "the mask is not applied", lambda call, _: call.args[0]


@alters("where")
def chosen(call: Call) -> Variants:
    if len(call.args) == 3:
        yield (
            "the mask is inverted (True where PyTorch has False)",
            lambda call, _: torch.where(~call.args[0], *call.args[1:]),
        )


@alters("tril", "triu")
def triangle(call: Call) -> Variants:
    theirs = arguments(call).get("diagonal", 0)
    for diagonal in {theirs - 1, theirs + 1}:
        yield (
            f"the triangle of the mask starts at diagonal {diagonal}, PyTorch's at {theirs}",
            changed(diagonal=diagonal),
        )
    yield (
        "the triangle of the mask is the other one",
        lambda call, _: (
            call.args[0].mT.mT * 0 + getattr(call.args[0], "triu" if call.name == "tril" else "tril")(theirs)
        ),
    )


@alters("sin", "cos")
def angles(call: Call) -> Variants:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield f"the angles of {call.name} are rounded to {name}", _rounded(dtype)


def _rounded(dtype: torch.dtype) -> Replacement:
    return lambda call, _: call.function(call.args[0].to(dtype).to(call.args[0].dtype))


def together(segment: Sequence[Call]) -> Iterator[tuple[str, Mapping[int, Replacement]]]:
    """Alterations that are made in several calls at once."""
    halves = {call.index: _pairs for call in segment if kind(call) == "cat" and _is_rotation(call, segment)}
    doubled = {call.index: _repeated for call in segment if kind(call) == "cat" and _is_doubled(call)}
    if halves:
        yield (
            "the rotary embedding turns neighbouring pairs (interleaved), PyTorch's the two halves",
            {**halves, **doubled},
        )
        yield "the rotary embedding turns the other way", dict.fromkeys(halves, _negative)
    for name in ("sin", "cos"):
        both = {call.index: _swapped_wave for call in segment if kind(call) in ("sin", "cos")}
        if both and name == "sin":
            yield "sine and cosine are swapped", both
    for dtype in (torch.bfloat16, torch.float16):
        waves = {call.index: _rounded(dtype) for call in segment if kind(call) in ("sin", "cos")}
        if len(waves) > 1:
            yield f"the rotary embedding's angles are rounded to {str(dtype).removeprefix('torch.')}", waves


def _is_rotation(call: Call, segment: Sequence[Call]) -> bool:
    parts = call.args[0]
    negated = [other.output for other in segment if kind(other) == "neg"]
    return len(parts) == 2 and any(parts[0] is output for output in negated)


def _is_doubled(call: Call) -> bool:
    return len(call.args[0]) == 2 and call.args[0][0] is call.args[0][1]


def _pairs(call: Call, _: Any) -> torch.Tensor:
    whole = torch.cat((call.args[0][1], -call.args[0][0]), -1)
    return torch.stack((-whole[..., 1::2], whole[..., ::2]), -1).flatten(-2)


def _repeated(call: Call, _: Any) -> torch.Tensor:
    return call.args[0][0].repeat_interleave(2, -1)


def _negative(call: Call, _: Any) -> torch.Tensor:
    return -call.again()


def _swapped_wave(call: Call, _: Any) -> torch.Tensor:
    function: Callable[..., torch.Tensor] = torch.cos if kind(call) == "sin" else torch.sin
    return function(call.args[0])
