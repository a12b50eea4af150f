"""Assertions for other people's tests: `import parity` and compare a Flax network with its PyTorch original."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parity.sides.optimizers import Optimizer

if TYPE_CHECKING:
    import torch
    from flax import nnx
from parity.checks.check import check
from parity.errors import ParityError
from parity.reports.results import Report


def assert_parity(flax_model: "nnx.Module", torch_model: "torch.nn.Module", inputs: Any, **options: Any) -> Report:
    """Asserts that outputs and the activations of all submodules agree, in eval and in train mode.

    Args:
        flax_model, torch_model, inputs: see `parity.check`.
        options: its other arguments; `checks` replaces those of this assertion.

    Raises:
        AssertionError: where, how much, against which floor, and the likely cause.
        ParityError: if the two cannot be compared.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.assert_parity(ours, theirs, parity.random_inputs((3, 8)))
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    return _assert(flax_model, torch_model, inputs, ("forward", "activations"), options)


def assert_gradient_parity(
    flax_model: "nnx.Module", torch_model: "torch.nn.Module", inputs: Any, **options: Any
) -> Report:
    """As `assert_parity`, for the loss's gradient with respect to every parameter and the inputs.

    Raises:
        AssertionError, ParityError: as `assert_parity`.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.assert_gradient_parity(ours, theirs, parity.random_inputs((3, 8)))
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    return _assert(flax_model, torch_model, inputs, ("forward", "activations", "gradients"), options)


def assert_train_parity(
    flax_model: "nnx.Module",
    torch_model: "torch.nn.Module",
    batch: Any,
    *,
    optimizer: Optimizer | str = "sgd",
    steps: int = 5,
    **options: Any,
) -> Report:
    """Asserts that running statistics and each of `steps` optimiser steps agree, every step from PyTorch's state.

    Args:
        batch: inputs, or (inputs, targets).
        optimizer: "sgd", "adam", "adamw", or an `Optimizer` with settings of its own.

    Raises:
        AssertionError, ParityError: as `assert_parity`.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.assert_train_parity(ours, theirs, parity.random_inputs((3, 8)), optimizer="adamw")
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    inputs, targets = batch if isinstance(batch, tuple) else (batch, None)
    options = {"targets": targets, "optimizer": optimizer, "steps": steps, **options}
    return _assert(flax_model, torch_model, inputs, ("batch_stats", "optimizer"), options)


def _assert(
    flax_model: "nnx.Module",
    torch_model: "torch.nn.Module",
    inputs: Any,
    checks: Sequence[str],
    options: dict[str, Any],
) -> Report:
    __tracebackhide__ = True
    try:
        report = check(flax_model, torch_model, inputs, checks=options.pop("checks", checks), **options)
    except ParityError as error:
        raise error.with_traceback(None) from None  # the message helps, the stack does not
    if not report.passed:
        raise AssertionError(f"{report.headline}\n\n{report}")
    return report
