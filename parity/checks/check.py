"""The checks, and the function that runs them on any two networks whose names correspond."""

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from parity.checks import caveats
from parity.checks.pair import Both, OneSided, Pair
from parity.checks.passes import activation_gradients, activations, batch_stats, forward, gradients, layers
from parity.checks.tolerance import PROFILES, Error
from parity.checks.training import optimizer as optimizer_steps
from parity.checks.training import trajectory
from parity.checks.values import initialization, weights
from parity.checks.verdict import located
from parity.conversion.trees import is_array
from parity.diagnosis.moved_statistics import why_statistics_by_values
from parity.errors import ParityError
from parity.progress import at_check
from parity.reports.results import Comparison, Finding, Report
from parity.sides.arguments import map_arrays, named_arrays
from parity.sides.base import OUTPUT, Loss, Train, relaid
from parity.sides.flax import FlaxSide
from parity.sides.networks import (
    as_side,
    is_torch,
    name_of,
    require_network,
    unwrapped,
    with_as_many_biases,
)
from parity.sides.onnx import CHECKS as OF_ONNX
from parity.sides.onnx import OnnxSide, is_onnx
from parity.sides.optimizers import Optimizer
from parity.sides.precision import exact_arithmetic
from parity.sides.recorded import RecordedSide, Recording

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
"""{name, as `checks=` takes it: the function that makes the comparisons}.

Examples:
    >>> import parity
    >>> "activations" in parity.CHECKS
    True
"""
OF_PASSES = {"forward", "activations", "gradients", "activation_gradients"}  # of those that `Pair.runs` makes
DEFAULT = ("forward", "activations", "gradients", "batch_stats", "optimizer")
_WITHOUT_GRADIENTS = {"weights", "initialization", "forward", "activations", "layers", "batch_stats"}


def check(
    candidate: Any,
    reference: Any,
    inputs: Any = None,
    targets: Any = None,
    *,
    checks: Sequence[str] = DEFAULT,
    precision: str = "float64",
    torch_inputs: Any = None,
    loss: Loss | Callable | None = None,
    optimizer: Optimizer | str | None = None,
    steps: int = 5,
    batches: Sequence[tuple[Any, Any]] | None = None,
    train: Train | None = None,
    modes: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Report:
    """Compares a network with the one that it should be; neither is changed.

    Either is an NNX module, a PyTorch module, a pair (Linen module, variables), or a pair (function, parameters) where
    function(parameters, inputs) gives the outputs. Both may be of one framework. A network in JAX goes by the names
    that PyTorch would give its parameters. What `torch.compile`, DataParallel or AveragedModel wrapped is unwrapped.

    Outputs, the loss and its gradients, statistics and optimiser steps decide. Where outputs and gradients agree,
    activations that differ are noted: they lie inside, where two right networks may differ.

    Args:
        candidate: the network under test, filled with the other's weights (`parity.to_flax`). Or the path of an ONNX
            file of it, with precision="float32", for the checks forward, activations and weights in eval mode.
        reference: the network whose submodules have corresponding names; its own rounding is the limit. Or the path of
            a recording of one (`parity.record`), which brings inputs, targets, checks and optimiser with it. Or
            {name: array}, the outputs that it should have in eval mode.
        inputs: one batch, as the candidate takes it: (N, H, W, C) images in JAX, (N, C, H, W) in PyTorch,
            (N, features), (N, L) token ids...; several as a tuple of positional arguments or a dict of named ones,
            which may hold Python's own values too (`None`, `True`). Those of a recording by default.
        targets: what `loss` takes beside the outputs, in the candidate's layout. Random by default.
        checks: some of `parity.CHECKS`.
        precision: "float64", which finds faults; "float32" or "bfloat16", which show what they cost.
        torch_inputs: the batch as the reference takes it; by default channels are moved in arrays of four or more axes
            where one of the two is in PyTorch, masks apart.
        loss: the same loss in JAX and in PyTorch, each (outputs, targets) -> scalar; one function where both networks
            are of one framework. By default cross-entropy for integer targets and otherwise the mean squared
            difference.
        optimizer, steps: for "optimizer" and "trajectory"; "sgd", "adam", "adamw", or an `Optimizer` with settings.
        batches: real ones for "trajectory", (inputs, targets) in the candidate's layout.
        train: the real training loop for "trajectory", (model in train mode, batches, optimizer) -> loss before each
            update; it leaves the trained values in the model. A plain one by default.
        modes: "eval", "train" or both, where not both are meant (a folded BatchNorm has no train mode). By default eval
            mode, and train mode unless both networks compute the same in it. With eval mode alone and the checks
            forward and activations, the parameters need not correspond.
        names: {Flax path: PyTorch path} where the names differ: of the candidate, or of a reference in JAX where the
            candidate is in PyTorch.
        device: PyTorch's.

    Raises:
        ParityError: if the two cannot be compared: other names, other shapes, no parameters, a layer without a rule,
            integer images, a loss that is not a scalar, NaN on both sides.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> report = parity.check(ours, theirs, parity.random_inputs((3, 8)), checks=("forward",))
        >>> report.passed
        True
    """
    if is_onnx(reference):
        raise ParityError(f"{reference} is an ONNX file, which is a candidate: parity.check(file, network, inputs)")
    candidate, reference = unwrapped(candidate), unwrapped(reference)
    recording = _recording(candidate, reference, inputs, precision)
    if is_onnx(candidate):
        checks, modes = _of_onnx(candidate, recording or reference, checks, modes)
    for network in (() if is_onnx(candidate) else (candidate,)) + (() if recording else (reference,)):
        require_network(network)
    if recording is not None:
        checks = recording.about["checks"] if checks is DEFAULT else checks
        steps = min(steps, max(1, len(recording.about["steps"])))
        used = recording.optimizer(optimizer)
    elif inputs is None:
        raise ParityError("inputs are missing: one batch as the candidate takes it")
    else:
        used = Optimizer(optimizer) if isinstance(optimizer, str) else optimizer or Optimizer()
    checks = [checks] if isinstance(checks, str) else checks
    if unknown := [name for name in checks if name not in CHECKS]:
        raise ParityError(f"no check named {', '.join(unknown)}; the checks are {', '.join(CHECKS)}")
    if not checks:
        raise ParityError(f"checks is empty; there are {', '.join(CHECKS)}")
    if recording is not None:
        recording.require(checks, loss)
    modes = [modes] if isinstance(modes, str) else modes
    if modes is not None and (not modes or set(modes) - {"eval", "train"}):
        raise ParityError(f"modes is {modes!r}; it holds eval, train or both")
    if steps < 1:
        raise ParityError(f"steps is {steps}; it must be at least 1")
    if callable(loss) and is_torch(candidate) == is_torch(reference):
        loss = Loss(loss, loss)
    if loss is not None and not (isinstance(loss, tuple | list) and len(loss) == 2 and all(map(callable, loss))):
        raise ParityError("loss is a pair of functions (outputs, targets) -> scalar: one in JAX, one in PyTorch")
    if precision not in PROFILES:
        raise ParityError(f"no precision named {precision!r}; there are {', '.join(PROFILES)}")
    differentiate = not _WITHOUT_GRADIENTS.issuperset(checks)
    with exact_arithmetic(precision) as switches:
        pair = make_pair(
            candidate,
            recording or reference,
            inputs,
            torch_inputs=torch_inputs,
            precision=precision,
            names=names,
            device=device,
            targets=targets,
            loss=loss,
            optimizer=used,
            steps=steps,
            batches=batches,
            train=train,
            wanted_modes=modes,
            differentiate=differentiate,
            activation_gradients="activation_gradients" in checks,
            by_outputs=list(modes or ()) == ["eval"] and {"forward", "activations"}.issuperset(checks),
        )
        if recording is not None:
            pair.notes += recording.notes(pair.candidate.state())
        report = Report(settings(pair, switches), curves=pair.curves, notes=pair.notes, warnings=pair.warnings)
        _compare(pair, checks, report)
        report.comparisons, notes = located(report.comparisons)
        report.notes += notes
        if optimizer is not None and not {"optimizer", "trajectory"} & set(checks):
            pair.warn("an optimiser was given, but neither optimizer nor trajectory is among the checks")
        if not report.comparisons:
            pair.note("nothing was compared")
        elif not report.passed:
            report.findings = _findings(pair, report)
        caveats.of_networks(pair, checks, report.findings)
    return report


def _compare(pair: Pair, checks: Sequence[str], report: Report) -> None:
    """Adds every check's comparisons to the report, in order.

    Those of single passes are made mode by mode: of a large network, what one pass gives fills gigabytes.
    """
    rows: dict[str, list[Comparison]] = {name: [] for name in checks}

    def run(name: str, mode: str) -> None:
        several = bool(mode) and len(pair.all_modes) > 1
        at_check(f"{name}{f' in {mode} mode' if several else ''}, {checks.index(name) + 1} of {len(checks)}")
        started = time.perf_counter()
        try:
            rows[name] += CHECKS[name](pair)
        except OneSided as error:  # that is a difference, too
            rows[name].append(Comparison(name, "", OUTPUT, Error(np.inf, np.inf, np.inf, 0.0), note=str(error)))
        report.seconds[name] = report.seconds.get(name, 0.0) + time.perf_counter() - started

    of_passes = [name for name in checks if name in OF_PASSES]
    for name in checks:
        if name not in of_passes:
            run(name, "")
        elif name == of_passes[0]:
            for mode in pair.all_modes:
                pair.forget_runs()
                with pair.in_mode(mode):
                    for one in of_passes:
                        run(one, mode)
    report.comparisons += [row for name in checks for row in rows[name]]


def _of_onnx(
    candidate: Any, reference: Any, checks: Sequence[str], modes: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]]:
    """The checks and modes for an ONNX file.

    Raises:
        ParityError: for others than it serves, or a reference that is not a network.
    """
    checks = ("forward", "activations") if checks is DEFAULT else [checks] if isinstance(checks, str) else checks
    if others := [name for name in checks if name in CHECKS and name not in OF_ONNX]:
        raise ParityError(f"{candidate} serves the checks {', '.join(OF_ONNX)}, not {', '.join(others)}")
    if modes is not None and set(modes) != {"eval"} and modes != "eval":
        raise ParityError(f"{candidate} has eval mode only")
    if isinstance(reference, Recording):
        raise ParityError(f"{candidate} is compared with a network, not with a recording")
    return checks, ("eval",)


def _recording(candidate: Any, reference: Any, inputs: Any, precision: str) -> Recording | None:
    """The recording that the reference is, or None for a network."""
    if isinstance(reference, str | Path):
        return Recording.read(reference)
    arrays = isinstance(reference, Mapping) and all(map(is_array, reference.values()))  # a state_dict has tensors
    if arrays and inputs is not None and precision in PROFILES:
        return Recording.of_outputs(reference, inputs, as_side(candidate, precision))
    return None


def _findings(pair: Pair, report: Report) -> list[Finding]:
    """Causes where they are looked for, or the first difference."""
    if is_torch(pair.given.reference) and not is_onnx(pair.given.candidate):
        from parity.diagnosis.diagnose import diagnose as look
    elif isinstance(pair.candidate, FlaxSide) and isinstance(pair.oracle, FlaxSide):
        from parity.diagnosis.in_jax import causes_in_jax as look
    elif is_torch(pair.given.candidate) and isinstance(pair.oracle, FlaxSide):
        look = _from_the_other_side
    else:
        return [_first_difference(pair, report)]
    at_check("looking for the cause")
    try:
        findings = look(pair, report)
    except Exception as error:  # looking for the cause must never cost the verdict
        pair.note(f"no cause was found: looking for it raised {type(error).__name__}")
        findings = []
    if is_torch(pair.given.candidate) and is_torch(pair.given.reference):
        findings = [_about_the_reference(finding) for finding in findings]
    return findings or [_first_difference(pair, report)]


def _from_the_other_side(pair: Pair, report: Report) -> list[Finding]:
    """Causes of a PyTorch candidate's differences from a reference in JAX, looked for with the two exchanged."""
    from parity.diagnosis.diagnose import diagnose

    exchanged = replace(
        pair,
        candidate=pair.oracle,
        oracle=pair.candidate,
        reference=pair.candidate,
        given=Both(*reversed(pair.given)),
        inputs=Both(*reversed(pair.inputs)),
        targets=pair.targets.reference,
        notes=[],
        warnings=[],
        curves={},
    )
    found = diagnose(exchanged, report)
    return [
        replace(
            finding,
            cause=f"in the reference: {finding.cause.replace('PyTorch', 'the candidate')}",
            evidence=finding.evidence.replace("PyTorch", "the candidate"),
        )
        for finding in found
    ]


def _about_the_reference(finding: Finding) -> Finding:
    """The finding where both networks are PyTorch's, so that its name does not tell them apart."""
    words = {
        name: getattr(finding, name).replace("PyTorch", "the reference").replace("Flax", "the candidate")
        for name in ("cause", "evidence")
    }
    return replace(finding, **words)


def _first_difference(pair: Pair, report: Report) -> Finding:
    """The first difference, and its cause where values alone show it."""
    state, others = pair.candidate.state(), pair.oracle.state()
    different = [name for name in state if name in others and not np.array_equal(state[name], others[name])]
    if different:
        more = f" and {len(different) - 1} more of {len(state)} differ" if different[1:] else " differs"
        words = "parity.to_flax, load_state_dict or parity.randomize gives both networks the same values"
        return Finding(different[0], f"{different[0]}{more} before anything is computed", words)
    first = next((row for row in report.failures if row.check == "activations"), report.failures[0])
    theirs = report.settings["frameworks"][1]
    evidence = first.note or f"relative error {first.error.relative:.1e}, {theirs}'s own {first.floor:.1e}"
    step = f" in step {first.step}" if first.step else ""
    words = f"{first.name} is the first to differ in {first.check}{step}"
    if first.check == "batch_stats":
        with suppress(Exception):  # looking for the cause must never cost the verdict
            words = why_statistics_by_values(pair, first.name.rpartition(".")[0]) or words
    return Finding(first.name, words, evidence)


def make_pair(
    candidate: Any,
    reference: Any,
    inputs: Any,
    *,
    torch_inputs: Any = None,
    precision: str = "float64",
    names: Mapping[str, str] | None = None,
    device: str = "cpu",
    **options: Any,
) -> Pair:
    """The two networks as sides, on one batch; `options` are those of `Pair`. See `check` for the others."""
    if isinstance(reference, Recording):
        return _recorded_pair(candidate, reference, inputs, precision, names, device, options)
    inputs = map_arrays(np.asarray, inputs)
    zeros: list[str] = []
    if not is_onnx(candidate):
        candidate, reference, zeros = with_as_many_biases(candidate, reference, names)
    of_reference: dict[str, Any] = {"names": names if is_torch(candidate) else None, "device": device}
    oracle = as_side(reference, "float64", **of_reference)
    side = (
        OnnxSide(candidate, precision)
        if is_onnx(candidate)
        else as_side(candidate, precision, names=names, torch_names=oracle.parameters, device=device)
    )
    plain = oracle if precision == "float64" else as_side(reference, precision, **of_reference)
    if side.framework == oracle.framework:
        side.framework += " (candidate)"
        oracle.framework = plain.framework = f"{plain.framework} (reference)"
    others = relaid(inputs, side, oracle) if torch_inputs is None else map_arrays(np.asarray, torch_inputs)
    pair = Pair(
        candidate=side,
        oracle=oracle,
        reference=plain,
        given=Both(candidate, reference),
        inputs=Both(inputs, others),
        precision=precision,
        **options,
    )
    if zeros:
        pair.warn(
            f"recurrent layers have one bias where PyTorch keeps two, which were summed before the comparison "
            f"({', '.join(zeros[:4])} became zero): trained apart, PyTorch's move their sum twice as far in a step"
        )
    return pair


def _recorded_pair(
    candidate: Any,
    recording: Recording,
    inputs: Any,
    precision: str,
    names: Mapping[str, str] | None,
    device: str,
    options: dict[str, Any],
) -> Pair:
    oracle = RecordedSide(recording, precision)
    if is_torch(candidate):
        from parity.sides.biases import with_one_bias

        candidate, _ = with_one_bias(candidate, oracle.shapes())
    side = as_side(candidate, precision, names=names, torch_names=oracle.parameters, device=device)
    recorded = recording.given("inputs")
    inputs = relaid(recorded, oracle, side) if inputs is None else map_arrays(np.asarray, inputs)
    if options.get("targets") is None:
        options["targets"] = relaid(recording.given("targets"), oracle, side)
    both = Both(inputs, relaid(inputs, side, oracle))
    given = Both(candidate, recording)
    return Pair(
        candidate=side, oracle=oracle, reference=oracle, given=given, inputs=both, precision=precision, **options
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
        "flax network": name_of(pair.given.candidate),
        "torch network": name_of(pair.given.reference),
        **(pair.given.reference.provenance() if isinstance(pair.given.reference, Recording) else {}),
        "frameworks": [pair.candidate.framework, pair.oracle.framework],
        "jax device": jax.devices()[0].device_kind,
        **({"torch device": str(side.device)} if (side := _torch_side(pair)) else {}),
        **switches,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            **({"torch": torch.__version__} if (torch := sys.modules.get("torch")) else {}),
        },
    }


def _torch_side(pair: Pair) -> Any:
    return next((side for side in (pair.oracle, pair.candidate) if side.framework.startswith("PyTorch")), None)
