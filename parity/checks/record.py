"""Writes what a reference gives, with its noise floors, to a file that `parity.check` takes in its place."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks.check import CHECKS, DEFAULT, make_pair, settings
from parity.checks.pair import Both, Pair
from parity.checks.tolerance import Noise
from parity.conversion.checkpoints import write_checkpoint
from parity.errors import ParityError
from parity.sides.arguments import map_arrays, named_arrays
from parity.sides.base import Arrays, Loss, Run, Side
from parity.sides.networks import is_torch, name_of, require_network, unwrapped
from parity.sides.optimizers import Moments, Optimizer
from parity.sides.precision import exact_arithmetic
from parity.sides.recorded import FORMAT, SCHEMA, described, digest, structure, weights_digest
from parity.sides.trainers import as_array

RECORDABLE = ("weights", "forward", "activations", "gradients", "activation_gradients", "batch_stats", "optimizer")


def record(
    network: Any,
    inputs: Any,
    path: str | Path,
    targets: Any = None,
    *,
    checks: Sequence[str] = DEFAULT,
    precision: str = "float64",
    loss: Any = None,
    optimizer: Optimizer | str | None = None,
    steps: int = 5,
    device: str = "cpu",
    only: Sequence[str] = (),
    weights: str = "values",
    seed: int | None = None,
) -> None:
    """Writes everything that the checks need of a reference to one safetensors file.

    `parity.check(candidate, path)` then compares with it, also where the reference's framework is not installed. The
    file keeps inputs, targets, outputs, activations, gradients, statistics, optimiser steps and the noise floors of all
    of them, and how it was made: versions, switches, settings. The two biases of PyTorch's recurrent layers are
    recorded as their sum.

    Args:
        network: any that `parity.check` takes.
        inputs, targets: in the network's own layout; targets are random by default.
        path: ends in .safetensors.
        checks: for which the recording is to serve, some of `RECORDABLE`.
        precision, loss, optimizer, steps, device: as in `parity.check`.
        only: patterns ("layer1.*") of the activations and gradients to keep; all by default. Outputs are always kept.
        weights: "values", or "digest" for their SHA-256 alone: the candidate then needs the weights from elsewhere.
        seed: of the weights, noted in the file.

    Raises:
        ParityError: if the network cannot run, does not agree with itself, or the file cannot be written.

    Examples:
        >>> import parity, torch
        >>> from flax import nnx
        >>> ours, theirs = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), torch.nn.Linear(8, 4)
        >>> ours = parity.to_flax(theirs.state_dict(), ours)
        >>> parity.record(theirs, parity.random_inputs((3, 8)), "linear.safetensors", checks=("forward",))
        >>> parity.check(ours, "linear.safetensors").passed
        True
    """
    path, network = Path(path), unwrapped(network)
    require_network(network)
    if path.suffix != ".safetensors":
        raise ParityError(f"{path}: a recording's name ends in .safetensors")
    checks = [checks] if isinstance(checks, str) else list(checks)
    if unknown := [name for name in checks if name not in RECORDABLE]:
        raise ParityError(f"{', '.join(unknown)} cannot be recorded; what can is {', '.join(RECORDABLE)}")
    if weights not in ("values", "digest"):
        raise ParityError(f"weights is {weights!r}; it must be 'values' or 'digest'")
    optimizer = Optimizer(optimizer) if isinstance(optimizer, str) else optimizer or Optimizer()
    if is_torch(network):
        from parity.sides.biases import single_biases, with_one_bias

        network, _ = with_one_bias(network, single_biases(network))
    with exact_arithmetic(precision) as switches:
        pair = make_pair(
            network,
            network,
            inputs,
            precision=precision,
            device=device,
            targets=targets,
            loss=Loss(loss, loss) if callable(loss) else loss,
            optimizer=optimizer,
            steps=steps,
            differentiate=bool({"gradients", "activation_gradients", "optimizer"} & set(checks)),
            activation_gradients="activation_gradients" in checks,
        )
        pair.oracle.framework = pair.oracle.framework.removesuffix(" (reference)")
        writer = _Writer(pair, only)
        rows = [row for name in checks for row in CHECKS[name](pair)]
        if failed := [row.name for row in rows if not row.passed]:
            raise ParityError(f"the network does not agree with itself in {', '.join(failed[:5])}: is it random?")
        about = {
            "network": name_of(network),
            "checks": checks,
            "seed": seed,
            "loss": "given" if loss is not None else "default",
            "optimizer": described(optimizer),
            "settings": settings(pair, switches),
            "notes": pair.notes,
            "precision": precision,
            **writer.about(weights),
        }
    metadata = {"format": FORMAT, "schema": SCHEMA, "about": json.dumps(about)}
    write_checkpoint(path, {name: np.array(array, order="C") for name, array in writer.tensors.items()}, metadata)


class _Writer:
    """Collects what the reference gives while the checks run."""

    def __init__(self, pair: Pair, only: Sequence[str]):
        self.side: Side = pair.oracle
        self.only = only
        self.given = {"inputs": pair.inputs.reference, "targets": pair.targets.reference}
        self.mode_arguments = pair.oracle.mode_arguments(pair.inputs.reference)
        self.tensors: Arrays = {}
        self.passes: dict[str, dict[str, Any]] = {}
        self.steps: list[dict[str, Any]] = []
        for name, value in self.given.items():
            self._put(name, named_arrays(map_arrays(np.asarray, value)))
        self.state = pair.oracle.state()
        pair.observe, pair.observe_step = self.take_pass, self.take_step

    def _put(self, name: str, arrays: Arrays) -> None:
        self.tensors |= {f"{name}/{key}": array for key, array in arrays.items()}

    def _kept(self, group: str, arrays: Arrays) -> list[str]:
        if not self.only or group not in ("activations", "activation_gradients", "gradients"):
            return list(arrays)
        return [name for name in arrays if any(fnmatchcase(name, pattern) for pattern in self.only)]

    def take_pass(self, inputs: Both, train: bool, run: Run, noise: Noise) -> None:
        """A pass over inputs that came before adds what the earlier one lacked."""
        mode, wanted = "train" if train else "eval", digest(inputs.reference)
        numbered = [key for key, one in self.passes.items() if one["mode"] == mode]
        key = next((key for key in numbered if self.passes[key]["inputs"] == wanted), f"{mode} {len(numbered) + 1}")
        one = self.passes.setdefault(key, {"mode": mode, "inputs": wanted, "floors": {}})
        for group, arrays in run.groups().items():
            for name in self._kept(group, arrays):
                if self.tensors.setdefault(f"pass/{key}/{group}/{name}", arrays[name]) is arrays[name]:
                    one["floors"].setdefault(group, {})[name] = noise.floors[group][name]

    def take_step(self, step: int, state: Arrays, kept: Moments, noise: Noise) -> None:
        self._put(f"step/{step}/state", state)
        for name, moments in kept.items():
            for moment, value in moments.items():
                self.tensors[f"step/{step}/moments/{moment}/{name}"] = np.array(as_array(value))
        self.steps.append({"floors": noise.floors})

    def about(self, weights: str) -> dict[str, Any]:
        if weights == "values":
            self._put("state", {name: _narrowed(array) for name, array in self.state.items()})
        side = self.side
        return {
            "framework": side.framework,
            "channels": side.channels,
            "device": str(side.device),
            "parameters": list(side.parameters),
            "trained": list(side.trained),
            "constants": sorted(side.constants),
            "takes_tokens": side.takes_tokens,
            "has_train_mode": side.has_train_mode,
            "shapes": side.shapes(),
            "digests": {name: weights_digest(array) for name, array in self.state.items()},
            "mode_arguments": self.mode_arguments,
            "given": {name: structure(value) for name, value in self.given.items()},
            "passes": self.passes,
            "steps": self.steps,
            "tensors": list(self.tensors),
        }


def _narrowed(array: np.ndarray) -> np.ndarray:
    """As float32, where that keeps every value: weights were float32 before they were computed with in float64."""
    narrow = array.astype(np.float32) if array.dtype == np.float64 else array
    return narrow if np.array_equal(narrow, array) else array
