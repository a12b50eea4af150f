"""Known reasons why a loss differs from PyTorch's on the same outputs and targets, each tried on PyTorch's function."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity.checks.pair import Pair
from parity.diagnosis.alterations import Variants, alters, arguments, changed, kind, variants
from parity.diagnosis.program import Call, Program, Replacement
from parity.sides.base import OUTPUT

SMOOTHINGS = (0.0, 0.05, 0.1, 0.2)


def why(pair: Pair) -> str:
    """The first hypothesis about the loss, in plain words; "" if both give the same, or if none explains it."""
    outputs = pair.runs(False).noise.oracle["outputs"]
    if set(outputs) != {OUTPUT}:
        return ""
    theirs = _Loss(pair, outputs[OUTPUT])
    ours = float(pair.loss.jax(pair.candidate.array(_like_ours(pair, outputs[OUTPUT])), _targets(pair)))
    reference = theirs.value
    limit = 1e-9 if pair.precision == "float64" else 1e-4
    if np.isclose(ours, reference, rtol=limit, atol=0):
        return ""
    found = []
    for call in theirs.program.calls:
        for words, replacement in variants(call):
            value = theirs.program.until(("output", ""), OUTPUT, {call.index: replacement})
            if value is not None and value.shape == () and np.isclose(float(value), ours, rtol=limit, atol=0):
                found.append(words)
    found = list(dict.fromkeys(found))
    if found:
        return found[0] if len(found) == 1 else "either " + ", or ".join(found[:5])
    return f"the loss of the same outputs and targets is {ours:.8g}, PyTorch's {reference:.8g}"


class _Loss:
    """PyTorch's loss of its own outputs, as a program."""

    def __init__(self, pair: Pair, outputs: np.ndarray):
        x, targets = torch.from_numpy(outputs), pair.oracle.array(pair.targets.reference)
        self.program = Program(lambda: pair.loss.torch(x, targets), torch.nn.Identity())
        self.value = float(self.program.tensors["output", ""][OUTPUT])


def _like_ours(pair: Pair, outputs: np.ndarray) -> np.ndarray:
    shape = pair.candidate.output_shapes(pair.inputs.candidate)[OUTPUT]
    return outputs if outputs.shape == shape else np.moveaxis(outputs, 1, -1)


def _targets(pair: Pair) -> Any:
    return pair.candidate.array(pair.targets.candidate)


@alters("cross_entropy")
def cross_entropy(call: Call) -> Variants:
    settings = arguments(call)
    theirs = settings.get("label_smoothing", 0.0)
    for smoothing in SMOOTHINGS:
        if smoothing != theirs:
            yield f"label smoothing is {smoothing:g}, PyTorch's is {theirs:g}", changed(label_smoothing=smoothing)
    if settings.get("weight") is not None:
        yield "the class weights are not applied", changed(weight=None)
        if settings.get("reduction", "mean") == "mean":
            yield (
                "the weighted loss is divided by the number of labels, PyTorch's by the sum of their weights",
                _by_count,
            )
    ignored = settings.get("ignore_index", -100)
    target = settings["target"]
    if not target.is_floating_point() and (target == ignored).any():
        if ignored >= 0:
            yield f"labels of ignore_index {ignored} are counted", changed(ignore_index=-100)
        yield f"the loss is divided by all labels, PyTorch's by those that are not {ignored}", _by_count
    yield from _reductions(call)


@alters("mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits", "nll_loss", "kl_div", "huber_loss")
def reduced(call: Call) -> Variants:
    yield from _reductions(call)


def _reductions(call: Call) -> Iterator[tuple[str, Replacement]]:
    theirs = call.kwargs.get("reduction", "mean")
    for reduction in ("mean", "sum"):
        if reduction != theirs:
            yield f"the loss is reduced by {reduction}, PyTorch's by {theirs}", _with_reduction(reduction)
    if theirs == "mean" and kind(call) != "cross_entropy":
        yield (
            "the loss is summed over all but the batch, PyTorch averages over everything",
            lambda call, _: _with_reduction("sum")(call, []) / len(call.args[0]),
        )


def _with_reduction(reduction: str) -> Replacement:
    return lambda call, _: call.again(reduction=reduction)


def _by_count(call: Call, _: Any) -> torch.Tensor:
    return call.again(reduction="sum") / arguments(call)["target"].numel()
