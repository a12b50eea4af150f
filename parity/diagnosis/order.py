"""The same operations in another order, on other axes, or left out."""

from collections.abc import Callable
from typing import Any

import torch

from parity.diagnosis.activations import activation
from parity.diagnosis.alterations import Variants, alters, arguments, is_tensor, kind
from parity.diagnosis.program import Call, Replacement


@alters("flatten", "reshape", "view", "unflatten")
def reshape(call: Call) -> Variants:
    """Values flattened or split in another order of axes."""
    x, y = call.args[0], call.output
    if not is_tensor(y) or x.shape == y.shape:
        return
    if y.ndim < x.ndim and x.ndim >= 3:
        last = (0, *range(2, x.ndim), 1)
        yield (
            f"values are flattened with the {x.shape[1]} channels last, PyTorch's with them first",
            _reshaped(lambda x: x.permute(last)),
        )
        for first in range(1, x.ndim):
            for second in range(first + 1, x.ndim):
                if (first, second) != (1, 2) or x.ndim > 3:
                    yield (
                        f"values are flattened with axes {first} and {second} (of PyTorch's layout) swapped",
                        _reshaped(lambda x, a=first, b=second: x.transpose(a, b)),
                    )
    if y.ndim > x.ndim:
        yield from _split(x, y)


def _split(x: torch.Tensor, y: torch.Tensor) -> Variants:
    """An axis split into two the other way round: (heads, width) or (width, heads)."""
    for axis in range(y.ndim - 1):
        sizes = list(y.shape)
        if 1 in sizes[axis : axis + 2]:
            continue
        sizes[axis], sizes[axis + 1] = sizes[axis + 1], sizes[axis]
        merged = (*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :])
        if merged == x.shape:
            yield (
                f"an axis of {merged[axis]} is split into ({sizes[axis]}, {sizes[axis + 1]}) and turned, PyTorch's "
                f"into ({y.shape[axis]}, {y.shape[axis + 1]})",
                lambda call, _, sizes=tuple(sizes), axis=axis: call.args[0].reshape(sizes).transpose(axis, axis + 1),
            )


def _reshaped(before: Callable[[torch.Tensor], torch.Tensor]) -> Replacement:
    def replaced(call: Call, _: Any) -> torch.Tensor:
        return Call(
            0, call.name, call.function, (before(call.args[0]).contiguous(), *call.args[1:]), call.kwargs
        ).again()

    return replaced


@alters("transpose", "permute", "swapaxes")
def transpose(call: Call) -> Variants:
    yield (
        "axes that PyTorch transposes are reshaped only",
        lambda call, _: call.args[0].reshape(call.again().shape),
    )


@alters("mT", "T")
def matrix_transpose(call: Call) -> Variants:
    yield "axes that PyTorch transposes are reshaped only", lambda call, _: call.args[0].reshape(call.again().shape)


@alters("chunk", "split", "unbind")
def parts(call: Call) -> Variants:
    count = len(call.output)
    names = "0123456789"
    for first in range(count if count <= 6 else 0):
        for second in range(first + 1, count):
            order = list(range(count))
            order[first], order[second] = order[second], order[first]
            yield (
                f"parts {names[first]} and {names[second]} of PyTorch's {kind(call)} are swapped",
                lambda call, _, order=tuple(order): tuple(call.again()[place] for place in order),
            )
    if count == 3:
        for order in ((1, 2, 0), (2, 0, 1)):
            yield (
                f"the parts of PyTorch's {kind(call)} are taken in the order {order}",
                lambda call, _, order=order: tuple(call.again()[place] for place in order),
            )
    if kind(call) == "chunk" and count > 1:
        dim = arguments(call).get("dim", 0)
        yield (
            f"every {count}th value is taken where PyTorch takes {count} chunks",
            lambda call, _: call.args[0].unflatten(dim, (-1, count)).unbind(dim if dim < 0 else dim + 1),
        )


@alters("cat", "stack")
def joined(call: Call) -> Variants:
    if len(call.args[0]) < 2:
        return
    yield (
        f"the parts of {kind(call)} come in the opposite order",
        lambda call, _: call.function(tuple(reversed(call.args[0])), *call.args[1:], **call.kwargs),
    )


@alters("flip")
def flipped(call: Call) -> Variants:
    yield "an axis that PyTorch reverses is not reversed", lambda call, _: call.args[0]


@alters("add", "sub", "mul")
def operands(call: Call) -> Variants:
    if len(call.args) != 2 or not all(map(is_tensor, call.args)):
        return
    words = {"add": "sum", "sub": "difference", "mul": "product"}[kind(call)]
    for place, name in ((0, "second"), (1, "first")):
        if call.args[place].shape == call.output.shape:
            yield (
                f"the {name} operand of PyTorch's {words} is left out",
                lambda call, _, place=place: call.args[place],
            )
    if kind(call) == "add":
        yield "one operand of PyTorch's sum is subtracted", lambda call, _: call.args[0] - call.args[1]
        yield "one operand of PyTorch's sum is multiplied", lambda call, _: call.args[0] * call.args[1]
        yield "the mean is taken where PyTorch takes the sum", lambda call, _: (call.args[0] + call.args[1]) / 2
    if kind(call) == "sub":
        yield "the difference has another sign", lambda call, _: call.args[1] - call.args[0]
    if kind(call) == "mul":
        yield "one operand of PyTorch's product is added", lambda call, _: call.args[0] + call.args[1]


@alters("relu", "gelu", "silu", "relu6", "tanh", "leaky_relu", "hardswish", "elu")
def after_a_sum(call: Call) -> Variants:
    """An activation of a sum, applied to the operands before."""
    if len(call.sources) == 1:
        source = call.sources[0]
        name = kind(call)
        for place, words in ((0, "first"), (1, "second")):
            yield (
                f"{name} is applied to the {words} operand before the residual sum, PyTorch applies it after",
                _before_the_sum(source, (place,)),
            )
        yield (
            f"{name} is applied to both operands before the residual sum, PyTorch applies it after",
            _before_the_sum(source, (0, 1)),
        )


def _before_the_sum(source: int, places: tuple[int, ...]) -> Replacement:
    def replaced(call: Call, calls: list[Call]) -> torch.Tensor:
        sum_ = calls[source]
        if kind(sum_) != "add" or not all(map(is_tensor, sum_.args)):
            raise ValueError("not the activation of a sum")
        apply = lambda x: call.function(x, *call.args[1:], **call.kwargs)  # noqa: E731
        first, second = (apply(x) if place in places else x for place, x in enumerate(sum_.args))
        return first + second

    return replaced


@alters("add")
def of_an_activation(call: Call) -> Variants:
    """A sum with an activation, which is applied after it instead."""
    for source in call.sources:
        yield (
            "an activation is applied after the residual sum, PyTorch applies it to one operand",
            _after_the_sum(source),
        )


def _after_the_sum(source: int) -> Replacement:
    def replaced(call: Call, calls: list[Call]) -> torch.Tensor:
        inner = calls[source]
        if not any(True for _ in activation(inner)) or len(call.args) != 2:
            raise ValueError("no activation")
        operands = [inner.args[0] if x is inner.output else x for x in call.args]
        return inner.function(operands[0] + operands[1], *inner.args[1:], **inner.kwargs)

    return replaced
