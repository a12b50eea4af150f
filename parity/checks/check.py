"""The checks, and the function that runs them on any NNX module and torch module whose names correspond."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
import optax
import torch
from flax import nnx

from parity.checks import caveats
from parity.checks.pair import Both, OneSided, Pair
from parity.checks.passes import activation_gradients, activations, batch_stats, forward, gradients, layers
from parity.checks.tolerance import PROFILES, Error
from parity.checks.training import optimizer as optimizer_steps
from parity.checks.training import trajectory
from parity.checks.values import initialization, weights
from parity.checks.verdict import located
from parity.conversion.convert import require_values
from parity.errors import ParityError
from parity.reports.results import Comparison, Finding, Report
from parity.sides.base import OUTPUT, Loss, Train, channels_second, map_arrays, named_arrays
from parity.sides.flax import FlaxSide
from parity.sides.networks import require_networks
from parity.sides.optimizers import Optimizer
from parity.sides.precision import exact_arithmetic
from parity.sides.torch import TorchSide

CHECKS: dict[str, Callable[[Pair], list[Comparison]]] = {
    "weights": weights,
    "initialization": initialization,
    "forward": forward,
    "activations": activations,
    "layers": layers,
    "gradients": gradients,
    "activation_gradients": activation_gradients,
    "batch_stats": batch_stats,
    "optimizer": optimizer_steps,
    "trajectory": trajectory,
}
DEFAULT = ("forward", "activations", "gradients", "batch_stats", "optimizer")
_WITHOUT_GRADIENTS = {"weights", "initialization", "forward", "activations", "layers", "batch_stats"}


def check(
    flax_model: nnx.Module,
    torch_model: torch.nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    checks: Sequence[str] = DEFAULT,
    precision: str = "float64",
    torch_inputs: Any = None,
    loss: Loss | None = None,
    optimizer: Optimizer | str | None = None,
    steps: int = 5,
    batches: Sequence[tuple[Any, Any]] | None = None,
    train: Train | None = None,
    modes: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Report:
    """Compares a Flax network with its PyTorch original; neither is changed.

    Outputs, the loss and its gradients, statistics and optimiser steps decide. Where outputs and gradients agree,
    activations that differ are noted: they lie inside, where two right networks may differ.

    Args:
        flax_model: any NNX module, filled with the PyTorch network's weights (`parity.to_flax`).
        torch_model: the module whose submodules have corresponding names.
        inputs: one batch, as Flax takes it: (N, H, W, C) images, (N, features), (N, L) token ids...; several as a tuple
            of positional arguments or a dict of named ones, which may hold Python's own values too (`None`, `True`).
        targets: what `loss` takes beside the outputs, in Flax's layout. Random by default.
        checks: some of `parity.CHECKS`.
        precision: "float64", which finds faults; "float32" or "bfloat16", which show what they cost.
        torch_inputs: the batch as PyTorch takes it; by default channels come second in arrays of four or more axes,
            masks apart.
        loss: the same loss in JAX and in PyTorch, each (outputs, targets) -> scalar. By default cross-entropy for
            integer targets and otherwise the mean squared difference.
        optimizer, steps: for "optimizer" and "trajectory"; "sgd", "adam", "adamw", or an `Optimizer` with settings.
        batches: real ones for "trajectory", (inputs, targets) in Flax's layout.
        train: the real training loop for "trajectory", (model in train mode, batches, optimizer) -> loss before each
            update; it leaves the trained values in the model. A plain one by default.
        modes: "eval", "train" or both, where not both are meant (a folded BatchNorm has no train mode). By default eval
            mode, and train mode unless both networks compute the same in it. With eval mode alone and the checks
            forward and activations, the parameters need not correspond.
        names: {Flax module path: PyTorch module path} where the names differ.
        device: PyTorch's.

    Raises:
        ParityError: if the two cannot be compared: other names, other shapes, no parameters, a layer without a rule,
            integer images, a loss that is not a scalar, NaN on both sides.
    """
    require_networks(flax_model, torch_model)
    require_values(flax_model)
    checks = [checks] if isinstance(checks, str) else checks
    if unknown := [name for name in checks if name not in CHECKS]:
        raise ParityError(f"no check named {', '.join(unknown)}; the checks are {', '.join(CHECKS)}")
    if not checks:
        raise ParityError(f"checks is empty; there are {', '.join(CHECKS)}")
    modes = [modes] if isinstance(modes, str) else modes
    if modes is not None and (not modes or set(modes) - {"eval", "train"}):
        raise ParityError(f"modes is {modes!r}; it holds eval, train or both")
    if steps < 1:
        raise ParityError(f"steps is {steps}; it must be at least 1")
    if loss is not None and not (isinstance(loss, tuple | list) and len(loss) == 2 and all(map(callable, loss))):
        raise ParityError("loss is a pair of functions (outputs, targets) -> scalar: one in JAX, one in PyTorch")
    if precision not in PROFILES:
        raise ParityError(f"no precision named {precision!r}; there are {', '.join(PROFILES)}")
    differentiate = not _WITHOUT_GRADIENTS.issuperset(checks)
    with exact_arithmetic(precision) as switches:
        pair = make_pair(
            flax_model,
            torch_model,
            inputs,
            torch_inputs=torch_inputs,
            precision=precision,
            names=names,
            device=device,
            targets=targets,
            loss=loss,
            optimizer=Optimizer(optimizer) if isinstance(optimizer, str) else optimizer or Optimizer(),
            steps=steps,
            batches=batches,
            train=train,
            wanted_modes=modes,
            differentiate=differentiate,
            activation_gradients="activation_gradients" in checks,
            by_outputs=list(modes or ()) == ["eval"] and {"forward", "activations"}.issuperset(checks),
        )
        report = Report(settings(pair, switches), curves=pair.curves, notes=pair.notes, warnings=pair.warnings)
        for name in checks:
            started = time.perf_counter()
            try:
                report.comparisons += CHECKS[name](pair)
            except OneSided as error:  # that is a difference, too
                report.comparisons.append(
                    Comparison(name, "", OUTPUT, Error(np.inf, np.inf, np.inf, 0.0), note=str(error))
                )
            report.seconds[name] = time.perf_counter() - started
        report.comparisons, notes = located(report.comparisons)
        report.notes += notes
        caveats.of_networks(pair, checks)
        if optimizer is not None and not {"optimizer", "trajectory"} & set(checks):
            pair.warn("an optimiser was given, but neither optimizer nor trajectory is among the checks")
        if not report.comparisons:
            pair.note("nothing was compared")
        elif not report.passed:
            from parity.diagnosis.diagnose import diagnose

            try:
                report.findings = diagnose(pair, report)
            except Exception as error:  # looking for the cause must never cost the verdict
                report.findings = [Finding("", f"no cause was found: looking for it raised {type(error).__name__}")]
    return report


def make_pair(
    flax_model: nnx.Module,
    torch_model: torch.nn.Module,
    inputs: Any,
    *,
    torch_inputs: Any = None,
    precision: str = "float64",
    names: Mapping[str, str] | None = None,
    device: str = "cpu",
    **options: Any,
) -> Pair:
    """The two networks as sides, on one batch; `options` are those of `Pair`. See `check` for the others."""
    inputs = map_arrays(np.asarray, inputs)
    others = channels_second(inputs) if torch_inputs is None else map_arrays(np.asarray, torch_inputs)
    oracle = TorchSide(torch_model, "float64", device)
    return Pair(
        candidate=FlaxSide(flax_model, precision, names, oracle.parameters),
        oracle=oracle,
        reference=oracle if precision == "float64" else TorchSide(torch_model, precision, device),
        given=Both(flax_model, torch_model),
        inputs=Both(inputs, others),
        precision=precision,
        **options,
    )


def settings(pair: Pair, switches: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    shapes = {name: list(array.shape) for name, array in named_arrays(pair.inputs.candidate).items()}
    return {
        "precision": pair.precision,
        "k": pair.profile.k,
        "least tolerance": pair.profile.least,
        "inputs": shapes[""] if list(shapes) == [""] else shapes,
        "modes": list(pair.wanted_modes or ("eval", "train")),
        "modes passed at call time": {
            side.framework: side.mode_arguments(inputs)
            for side, inputs in ((pair.candidate, pair.inputs.candidate), (pair.oracle, pair.inputs.reference))
        },
        "flax network": type(pair.given.candidate).__name__,
        "torch network": type(pair.given.reference).__name__,
        "jax device": pair.candidate.device,
        "torch device": str(pair.oracle.device),
        **switches,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "torch": torch.__version__,
        },
    }
