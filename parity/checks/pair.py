"""Both networks on one batch in one precision; each run is made once and shared by the checks."""

import contextlib
import sysconfig
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from flax import nnx

from parity.checks.optimizers import Optimizer
from parity.checks.tolerance import PROFILES, Error, Noise, Profile, measure
from parity.conversion.naming import NAMES_HINT, homeless_counters, mismatch_message
from parity.errors import ParityError
from parity.reports.results import Comparison
from parity.sides.base import (
    ARRANGEMENTS,
    OUTPUT,
    Arrangement,
    Arrays,
    Loss,
    Run,
    in_layout_of,
    like_torch,
    torch_layout,
)
from parity.sides.flax import FlaxSide
from parity.sides.losses import default_loss
from parity.sides.torch import TorchSide

Train = Callable[[Any, list[tuple[Any, Any]], Optimizer], list[float]]


class Runs(NamedTuple):
    """One pass of everything.

    Attributes:
        ours: the Flax network's, in PyTorch's layout.
        noise: the oracle's, and how far PyTorch's arrangements are from it.
        theirs: PyTorch's in the precision under test.
    """

    ours: Run
    noise: Noise
    theirs: Run


class OneSided(ParityError):
    """One network raised where the other gave a result."""


Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")


def _both(run_ours: Callable[[], Ours], run_theirs: Callable[[], Theirs]) -> tuple[Ours, Theirs]:
    results: list[Any] = []
    errors: list[Exception] = []
    for run in (run_ours, run_theirs):
        try:
            results.append(run())
        except ParityError:
            raise
        except Exception as error:
            errors.append(error)
            results.append(None)
    ours, theirs = results
    if not errors:
        return ours, theirs
    if len(errors) == 2:
        raise ParityError(
            "neither network runs on these inputs (as Flax takes them: channels last), with this loss and these "
            f"targets; PyTorch's says{_place(errors[1])}: {errors[1]}"
        ) from errors[0]
    raising, other = ("Flax", "PyTorch") if ours is None else ("PyTorch", "Flax")
    what, words = f"{type(errors[0]).__name__}{_place(errors[0])}", str(errors[0]).rstrip(". ")
    raise OneSided(f"{raising} raises {what}: {words}; {other} gives a result") from errors[0]


def _place(error: Exception) -> str:
    """The last line of the caller's own code on the way to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parent), *sysconfig.get_paths().values())
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


@dataclass
class Pair:
    """What `parity.check` was given, ready to run; see there for the arguments."""

    flax_model: nnx.Module
    torch_model: torch.nn.Module
    inputs: np.ndarray
    targets: Any = None
    torch_inputs: Any = None
    loss: Loss | None = None
    precision: str = "float64"
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 5
    batches: Sequence[tuple[Any, Any]] | None = None
    train: Train | None = None
    names: Mapping[str, str] | None = None
    device: str = "cpu"
    differentiate: bool = True
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = np.asarray(self.inputs)
        given = self.torch_inputs
        self.torch_inputs: np.ndarray = torch_layout(self.inputs) if given is None else np.asarray(given)
        self.oracle = TorchSide(self.torch_model, "float64", self.device)
        theirs = {name for name, _ in self.oracle.module.named_parameters()}
        self.ours = FlaxSide(self.flax_model, self.precision, self.names, theirs)
        # In float64 the network under test is the oracle, in other arrangements.
        self.theirs = (
            self.oracle if self.precision == "float64" else TorchSide(self.torch_model, self.precision, self.device)
        )
        self._require_correspondence()
        self._require_inputs()
        self._runs: dict[bool, Runs] = {}
        self._arrangements = list(ARRANGEMENTS[1:])
        if self.targets is None:
            self.targets, self.torch_targets = self._random_targets()
        else:
            self.torch_targets = torch_layout(self.targets)
        self.loss = self.loss or default_loss(self.targets)

    @property
    def profile(self) -> Profile:
        return PROFILES[self.precision]

    @property
    def torch_sides(self) -> list[TorchSide]:
        """PyTorch's network in float64 and, unless that is the same, in the precision under test."""
        return [self.oracle] if self.theirs is self.oracle else [self.oracle, self.theirs]

    @cached_property
    def modes(self) -> dict[str, bool]:
        """{mode: train?}; only "eval" for a network that has no statistics, since both are then the same."""
        has_statistics = any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(self.flax_model))
        return {"eval": False, "train": True} if has_statistics or self.ours.parts()[1] else {"eval": False}

    def runs(self, train: bool) -> Runs:
        """Everything that one batch gives in this mode, from the parameters and statistics that were given."""
        if train not in self._runs:
            self._runs[train] = self.run_from_here(self.inputs, self.torch_inputs, train=train, record=True)
        return self._runs[train]

    def forget_runs(self) -> None:
        """Frees what `runs` has kept, the gradients above all: as large as the network, for each side and mode."""
        self._runs.clear()

    def run_from_here(
        self, inputs: np.ndarray, torch_inputs: np.ndarray, *, train: bool, record: bool = False, backward: bool = True
    ) -> Runs:
        """A run of every network from the state it is in; without `backward`, PyTorch's go forward only.

        Raises:
            OneSided: if one side raises and the other does not.
        """
        loss = self.loss if self.differentiate else None

        def torch_run(side: TorchSide, **options: Any) -> Run:
            torch_loss = loss if backward else None
            return side.run(torch_inputs, self.torch_targets, torch_loss, train=train, record=record, **options)

        ours, oracle = _both(
            lambda: self.ours.run(inputs, self.targets, loss, train=train), lambda: torch_run(self.oracle)
        )
        _require_same_structure(ours, oracle)
        ours = like_torch(ours, oracle)
        _require_finite(ours, oracle)
        noise = Noise(oracle.groups(), scaled=("gradients",))
        theirs = oracle if self.theirs is self.oracle else torch_run(self.theirs)
        noise.add(theirs.groups())
        for run in self.arranged(lambda arrangement: torch_run(self.theirs, arrangement=arrangement)):
            noise.add(run.groups())
        return Runs(ours, noise, theirs)

    def arranged(self, run: Callable[[Arrangement], Theirs]) -> Iterator[Theirs]:
        """What `run` gives in each arrangement but the plain one; one in which the network does not run is left out."""
        for arrangement in list(self._arrangements):
            try:
                result = run(arrangement)
            except RuntimeError as error:
                self._arrangements.remove(arrangement)
                reason = str(error).splitlines()[0]
                self.note(f"PyTorch's noise is without the arrangements in which its network does not run: {reason}")
            else:
                yield result

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def load(self, state: Arrays) -> None:
        """Puts PyTorch's parameters and statistics into every network."""
        self.ours.load(state)
        for side in self.torch_sides:
            side.load(state)

    @contextlib.contextmanager
    def restored(self) -> Generator[None]:
        """Puts every network back into the state it was in, on leaving."""
        ours, theirs = dict(self.ours.values), [side.state() for side in self.torch_sides]
        try:
            yield
        finally:
            self.ours.values = ours
            for side, state in zip(self.torch_sides, theirs, strict=True):
                side.load(state)

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch for each step, in either layout: the given one, changed a little so that its statistics move."""
        if not np.issubdtype(self.inputs.dtype, np.floating):
            return np.roll(self.inputs, index, axis=-1), np.roll(self.torch_inputs, index, axis=-1)
        change = lambda x: (x * (1 + index / 4) + index / 8).astype(x.dtype)  # noqa: E731
        return change(self.inputs), change(self.torch_inputs)

    def judge(
        self, check: str, mode: str, group: str, ours: Mapping[str, np.ndarray], noise: Noise, step: int | None = None
    ) -> list[Comparison]:
        """Every tensor of the oracle's group that ours has too, in PyTorch's layout, held to `k` floors."""
        is_gradient = group in noise.scales
        least = self.profile.least_gradient if is_gradient else self.profile.least
        result = []
        for name, oracle in noise.oracle[group].items():
            if name not in ours:
                continue
            floor = noise.floors[group][name]
            if floor > self.profile.most:
                self.note(
                    f"PyTorch does not agree with itself in {name} ({floor:.0e} apart when the batch is permuted, laid "
                    f"out otherwise or moved by rounding): is it random, or its first axis not the batch's? {check} is "
                    f"held to {self.profile.k * self.profile.most:.0e} there"
                )
                floor = self.profile.most
            if ours[name].shape != oracle.shape:
                note = f"shape {ours[name].shape}, PyTorch's is {oracle.shape}"
                error = Error(np.inf, np.inf, np.inf, 0.0)
            else:
                scale = noise.scales.get(group, 0.0)
                note, error = "", measure(ours[name], oracle, scale=scale, precision=self.precision)
            tolerance = max(self.profile.k * floor, least)
            result.append(Comparison(check, mode, name, error, floor, tolerance, step, note))
        return result

    def _require_correspondence(self) -> None:
        ours = {name: leaf.torch_shape for name, leaf in self.ours.leaves.items()}
        tied = {id(parameter): name for name, parameter in self.oracle.module.named_parameters()}
        theirs = {
            name: tuple(tensor.shape)
            for name, tensor in self.oracle.module.state_dict(keep_vars=True).items()
            if tied.get(id(tensor), name) == name
        }
        homeless = homeless_counters(theirs, ours)
        missing = {name: shape for name, shape in theirs.items() if name not in ours and name not in homeless}
        unexpected = {name: shape for name, shape in ours.items() if name not in theirs}
        misshapen = {name: (ours[name], theirs[name]) for name in ours if theirs.get(name, ours[name]) != ours[name]}
        if missing or unexpected or misshapen:
            raise ParityError(
                mismatch_message(
                    missing, unexpected, misshapen, source="the Flax network", target="the PyTorch network"
                )
                + NAMES_HINT
            )

    def require_same_parameters(self, check: str) -> list[Comparison]:
        """A failure for each parameter that only one side trains."""
        theirs = dict(self.oracle.module.named_parameters())
        frozen = sorted(name for name, parameter in theirs.items() if not parameter.requires_grad)
        if frozen:
            self.note(f"frozen in PyTorch, so their gradients were not compared: {', '.join(frozen)}")
        ours = set(self.ours.parameters)
        notes = dict.fromkeys(theirs.keys() - ours, "a parameter in PyTorch, no nnx.Param in Flax")
        notes |= dict.fromkeys(ours - theirs.keys(), "an nnx.Param in Flax, no parameter in PyTorch")
        nothing = Error(np.inf, np.inf, np.inf, 0.0)
        return [Comparison(check, "", name, nothing, note=note) for name, note in sorted(notes.items())]

    def _require_inputs(self) -> None:
        if not self.inputs.ndim or not self.inputs.size:
            raise ParityError(f"the inputs are empty {self.inputs.shape}: a batch of a few examples is needed")
        takes_tokens = any(isinstance(module, nnx.Embed) for _, module in nnx.iter_modules(self.flax_model))
        looks_like_images = self.inputs.dtype == np.uint8 or self.inputs.ndim >= 4
        if not takes_tokens and looks_like_images and not np.issubdtype(self.inputs.dtype, np.floating):
            raise ParityError(
                f"the inputs are {self.inputs.dtype}, but the networks compute with floats: scale and convert them"
            )
        if not np.isfinite(self.inputs).all():
            raise ParityError("the inputs have NaN or infinite values")

    def _random_targets(self) -> tuple[Any, Any]:
        """Normal random targets of the output's shape, or {name: of that output's shape} where there are several.

        In Flax's layout, and in that of PyTorch's outputs.
        """
        rng = np.random.default_rng(0)
        shapes, oracle = _both(
            lambda: self.ours.output_shapes(self.inputs),
            lambda: self.oracle.run(self.torch_inputs, train=False, record=False),
        )
        targets = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        theirs = {name: in_layout_of(target, oracle.outputs.get(name, target)) for name, target in targets.items()}
        if set(targets) == {OUTPUT}:
            return targets[OUTPUT], theirs[OUTPUT]
        return _unprefixed(targets), _unprefixed(theirs)


def _unprefixed(outputs: Arrays) -> Arrays:
    return {name.removeprefix(f"{OUTPUT}."): array for name, array in outputs.items()}


def _require_same_structure(ours: Run, oracle: Run) -> None:
    if ours.outputs.keys() != oracle.outputs.keys():
        raise ParityError(
            "the outputs are built differently: "
            f"{', '.join(sorted(ours.outputs))} from Flax, {', '.join(sorted(oracle.outputs))} from PyTorch"
        )
    if not any(array.size for array in oracle.outputs.values()):
        raise ParityError("the outputs are empty: there is nothing to compare")


def _require_finite(ours: Run, oracle: Run) -> None:
    if not _is_finite(ours) and not _is_finite(oracle):
        raise ParityError(
            f"both networks give NaN or infinite values: Flax first in {first_not_finite(ours)}, PyTorch first in "
            f"{first_not_finite(oracle)}; there is nothing to compare"
        )


def _is_finite(run: Run) -> bool:
    return all(np.isfinite(array).all() for array in run.outputs.values())


def first_not_finite(run: Run) -> str:
    """The first submodule whose output has NaN or infinite values; "" if none has."""
    finite = {name: np.isfinite(value).all() for name, value in {**run.activations, **run.outputs}.items()}
    return next((name for name, good in finite.items() if not good), "")
