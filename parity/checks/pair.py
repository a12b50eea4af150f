"""Two sides on one batch in one precision; each run is made once and shared by the checks."""

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from parity.checks.beside import reference_passes
from parity.checks.correspondence import require_correspondence
from parity.checks.given import (
    first_not_finite,
    infinite_alike,
    is_finite,
    looks_channels_first,
    random_target,
    require_inputs,
)
from parity.checks.layout import in_agreeing_layout
from parity.checks.memory import give_back_freed_memory
from parity.checks.tolerance import PROFILES, Error, Noise, Profile, measure
from parity.errors import ParityError, first_line, place_of
from parity.progress import at_step
from parity.reports.results import Comparison
from parity.sides.arguments import map_arrays, named_arrays
from parity.sides.base import (
    OUTPUT,
    Arrangement,
    Arrays,
    Loss,
    Reference,
    Run,
    Side,
    Train,
    aligned,
    in_layout_of,
    relaid,
)
from parity.sides.losses import default_loss
from parity.sides.optimizers import Moments, Optimizer


class Both(NamedTuple):
    """The same thing as either side takes it, in its own layout."""

    candidate: Any
    reference: Any


class Runs(NamedTuple):
    """One pass of everything.

    Attributes:
        candidate: the network under test, in the reference's layout.
        noise: the oracle's pass, and how far the reference's arrangements are from it.
        reference: the reference's pass in the precision under test.
    """

    candidate: Run
    noise: Noise
    reference: Run


class OneSided(ParityError):
    """One network raised where the other gave a result."""


Candidate = TypeVar("Candidate")
Other = TypeVar("Other")


@dataclass(kw_only=True)
class Pair:
    """The two sides of a check, and what they are run on.

    Attributes:
        candidate: the network under test.
        oracle: the reference in float64.
        reference: the reference in the precision under test; in float64 the oracle itself, in other arrangements.
        given: the caller's own two networks, of which the sides are copies.
        inputs: one batch, as either side takes it: an array, a tuple of arguments or a dict of named ones.
        targets: what the loss takes beside the outputs; None for normal random ones of the outputs' shapes.
        loss: None for cross-entropy where the targets are integers, else the mean squared difference.
        optimizer, steps, batches, train: for the checks that train; see `parity.check`.
        differentiate: whether any check needs gradients.
        activation_gradients: whether any check needs those of the submodules' outputs.
        by_outputs: whether parameters need not correspond, because only outputs and activations are compared.
        observe, observe_step: called with what the oracle gave in a pass (inputs, train mode?, run, noise) and with
            what it held after an optimiser step (step, state, moments, noise), for a recording.
        wanted_modes: "eval", "train" or both; None for eval mode, and train mode where it computes something else.
        curves: {name: loss at each step}, from the trajectory check.
        notes: what was not compared and why, one sentence each.
        warnings: what the verdict does not cover although the two may differ in it, one sentence each.
    """

    candidate: Side
    oracle: Reference
    reference: Reference
    given: Both
    inputs: Both
    targets: Any = None
    loss: Any = None
    precision: str = "float64"
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 5
    batches: Sequence[tuple[Any, Any]] | None = None
    train: Train | None = None
    differentiate: bool = True
    activation_gradients: bool = False
    by_outputs: bool = False
    wanted_modes: Sequence[str] | None = None
    observe: Callable[[Both, bool, Run, Noise], None] | None = None
    observe_step: Callable[[int, Arrays, Moments, Noise], None] | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _mode: str = field(default="", init=False, repr=False)
    _runs: dict[bool, Runs] = field(default_factory=dict, init=False, repr=False)
    _arrangements: list[Arrangement] = field(default_factory=list, init=False, repr=False)
    _unsteady: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self._arrangements += self.oracle.arrangements
        require_correspondence(self.candidate, self.oracle, self.warn, by_outputs=self.by_outputs)
        require_inputs(self.inputs.candidate, takes_tokens=self.candidate.takes_tokens)
        given = self.targets
        self.targets: Both = (
            self._random_targets() if given is None else Both(given, relaid(given, self.candidate, self.oracle))
        )
        self.loss: Loss = Loss(*self.loss) if self.loss is not None else default_loss(self.targets.candidate)

    @property
    def profile(self) -> Profile:
        return PROFILES[self.precision]

    @property
    def references(self) -> list[Reference]:
        """The reference in float64 and, unless that is the same, in the precision under test."""
        return [self.oracle] if self.reference is self.oracle else [self.oracle, self.reference]

    @property
    def modes(self) -> dict[str, bool]:
        """{mode: train?}: all of them, or the one that `in_mode` has set."""
        return {self._mode: self.all_modes[self._mode]} if self._mode else self.all_modes

    @contextlib.contextmanager
    def in_mode(self, mode: str) -> Generator[None]:
        """Inside, this is the only mode."""
        self._mode = mode
        try:
            yield
        finally:
            self._mode = ""

    @property
    def is_in_first_mode(self) -> bool:
        """Whether what is compared once for all modes is compared now."""
        return next(iter(self.modes), "") == next(iter(self.all_modes), "")

    @cached_property
    def all_modes(self) -> dict[str, bool]:
        """{mode: train?}: those asked for, or those in which either computes something else and a recording has."""
        modes = {"eval": False, "train": True}
        if self.wanted_modes is not None:
            return {name: modes[name] for name in self.wanted_modes}
        if not self._train_mode_matters():
            del modes["train"]
        known = getattr(self.oracle, "modes", modes)
        for mode in modes.keys() - known:
            self.warn(f"{self.oracle.framework} was recorded without {mode} mode, which was not compared")
        return {mode: train for mode, train in modes.items() if mode in known}

    def _train_mode_matters(self) -> bool:
        if self.candidate.has_train_mode:
            return True
        try:
            return not (
                self.candidate.computes_alike_in_both_modes(self.inputs.candidate)
                and self.oracle.computes_alike_in_both_modes(self.inputs.reference)
            )
        except Exception:  # the pass itself then raises, and with more to say
            return True

    def trains(self, check: str) -> bool:
        """Whether train mode is meant, without which `check` has nothing to do; a warning if it is not."""
        if self.wanted_modes is None or "train" in self.wanted_modes:
            return True
        self.warn(f"{check} was not run: it trains, and modes={tuple(self.wanted_modes)} leaves train mode out")
        return False

    def runs(self, train: bool) -> Runs:
        """Everything that one batch gives in this mode, from the parameters and statistics that were given."""
        if train not in self._runs:
            self._runs[train] = self.run_from_here(self.inputs, train=train, record=True)
        return self._runs[train]

    def runs_so_far(self, *, train: bool) -> Runs | None:
        """What `runs` has kept of this mode, if anything."""
        return self._runs.get(train)

    def forget_runs(self) -> None:
        """Frees what `runs` has kept, the gradients above all: as large as the network, for each side and mode."""
        self._runs.clear()
        give_back_freed_memory()

    def run_from_here(self, inputs: Both, *, train: bool, record: bool = False, backward: bool = True) -> Runs:
        """A run of every network from the state it is in; without `backward`, the reference's go forward only.

        Raises:
            OneSided: if one side raises and the other does not.
        """
        loss = self.loss if self.differentiate else None
        at_step(f"{'train' if train else 'eval'} mode")
        of_outputs = self.activation_gradients and record

        def reference_run(side: Reference, arrangement: Arrangement) -> Run:
            options = {"train": train, "record": record, "activation_gradients": of_outputs}
            its_loss = loss if backward else None
            return side.run(inputs.reference, self.targets.reference, its_loss, arrangement=arrangement, **options)

        its = self.oracle, self.reference, reference_run, tuple(self._arrangements), self.profile.share
        try:
            with reference_passes(*its) as passes:
                run, oracle = self._both(
                    lambda: self.candidate.run(
                        inputs.candidate, self.targets.candidate, loss, train=train, activation_gradients=of_outputs
                    ),
                    lambda: passes.oracle.result()[0],
                )
                self._require_same_structure(run, oracle)
                run = aligned(run, oracle, self.candidate, self.oracle)
                self._require_finite(run, oracle)
                noise, plain = passes.oracle.result()[1], passes.plain.result()
                noise.add(plain.groups())
                for distances in self.arranged(lambda arrangement: passes.distances[arrangement].result()):
                    noise.add_floors(distances)
        except OneSided as one_sided:
            try:  # a loss raises, too, where the outputs are built differently
                ours, theirs = (
                    self.candidate.run(inputs.candidate, train=train),
                    self.oracle.run(inputs.reference, train=train, record=False),
                )
            except Exception:
                raise one_sided from one_sided.__cause__
            self._require_same_structure(ours, theirs)
            raise
        noise.add_floors(oracle.floors)
        if self.observe is not None:
            self.observe(inputs, train, oracle, noise)
        return Runs(run, noise, plain)

    def arranged(self, run: Callable[[Arrangement], Other]) -> Iterator[Other]:
        """What `run` gives in each arrangement but the plain one; one in which the network does not run is dropped."""
        for number, arrangement in enumerate(list(self._arrangements), 1):
            at_step(f"{self.oracle.framework}'s noise, {number} of {len(self._arrangements)}")
            try:
                result = run(arrangement)
            except RuntimeError as error:
                self._arrangements.remove(arrangement)
                self.note(
                    f"{self.oracle.framework}'s noise floor leaves out arrangements in which its network does not run: "
                    f"{str(error).splitlines()[0]}"
                )
            else:
                yield result

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        """Adds a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def load(self, state: Arrays) -> None:
        """Puts the reference's parameters and statistics into every network."""
        self.candidate.load(state)
        for side in self.references:
            side.load(state)

    @contextlib.contextmanager
    def restored(self, *, parameters: bool = True) -> Generator[None]:
        """Puts every network back into the state it was in, on leaving; without `parameters` the statistics alone."""
        sides: list[Side] = [self.candidate, *self.references]
        states = [side.state() for side in sides]
        if not parameters:
            states = [
                {name: array for name, array in state.items() if name not in side.parameters}
                for side, state in zip(sides, states, strict=True)
            ]
        try:
            yield
        finally:
            for side, state in zip(sides, states, strict=True):
                side.load(state)

    def batch(self, index: int) -> Both:
        """A batch for each step: the given one, changed a little so that its statistics move.

        Where there are no floats, integers are moved along their last axis; a mask stays as it is.
        """
        has_floats = any(array.dtype.kind in "fc" for array in named_arrays(self.inputs.candidate).values())

        def changed(array: np.ndarray) -> np.ndarray:
            if array.dtype.kind in "fc":
                return (array * (1 + index / 4) + index / 8).astype(array.dtype)
            return array if has_floats or array.dtype == bool or not array.ndim else np.roll(array, index, axis=-1)

        return Both(*(map_arrays(changed, inputs) for inputs in self.inputs))

    def judge(
        self, check: str, mode: str, group: str, arrays: Mapping[str, np.ndarray], noise: Noise, step: int | None = None
    ) -> list[Comparison]:
        """Every tensor of the oracle's group that the candidate has too, in its layout, held to `k` floors."""
        is_gradient = group in noise.scales
        least = self.profile.least_gradient if is_gradient else self.profile.least
        framework, channels = self.oracle.framework, (self.candidate.channels, self.oracle.channels)
        result = []
        for number, (name, oracle) in enumerate(noise.oracle[group].items(), 1):
            if name not in arrays:
                continue
            at_step(f"{name}, {number} of {len(noise.oracle[group])}")
            floor = noise.floors[group][name]
            if floor > self.profile.most:
                if (check, name) not in self._unsteady:  # in the first of several steps
                    self._unsteady.add((check, name))
                    held = self.profile.k * self.profile.most
                    self.note(
                        f"{framework} does not agree with itself in {name} ({floor:.0e} apart when the batch is "
                        "permuted, laid out otherwise or moved by rounding): is it random, or zero but for rounding, "
                        f"or is its first axis not the batch? {check} is held to {held:.0e} there"
                    )
                floor = self.profile.most
            tolerance = max(self.profile.k * floor, least)
            ours, words = in_agreeing_layout(group, name, arrays[name], noise, tolerance, channels)
            if words:
                self.note(f"{check}: {name} is compared {words}")
            if ours.shape != oracle.shape:
                note = f"shape {ours.shape}, {framework}'s is {oracle.shape}"
                error = Error(np.inf, np.inf, np.inf, 0.0)
            else:
                scales = {"scale": noise.scales.get(group, 0.0), "share": noise.shares.get(group, 1.0)}
                note, error = "", measure(ours, oracle, **scales, precision=self.precision)
                self._warn_of_infinity(check, name, ours, oracle)
            result.append(Comparison(check, mode, name, error, floor, tolerance, step, note))
        return result

    def _warn_of_infinity(self, check: str, name: str, ours: np.ndarray, oracle: np.ndarray) -> None:
        infinite = np.isinf(oracle) & (np.asarray(ours) == oracle)
        if infinite.any():
            self.warn(
                f"{check}: {name} has {int(infinite.sum())} infinite values that are equal on both sides; only the "
                f"other {int((~infinite).sum())} are measured"
            )

    def one_sided_parameters(self, check: str) -> list[Comparison]:
        """A failure for each parameter that only one side trains; frozen ones are noted."""
        trained, others = set(self.candidate.parameters), set(self.oracle.parameters)
        frozen = sorted(others - set(self.oracle.trained))
        if frozen:
            self.note(f"frozen in {self.oracle.framework}, so their gradients were not compared: {', '.join(frozen)}")
        ours, theirs = self.candidate.framework, self.oracle.framework
        notes = dict.fromkeys(others - trained, f"a parameter in {theirs}, but not {_parameter(ours)} in {ours}")
        notes |= dict.fromkeys(trained - others, f"{_parameter(ours)} in {ours}, but not a parameter in {theirs}")
        nothing = Error(np.inf, np.inf, np.inf, 0.0)
        return [Comparison(check, "", name, nothing, note=note) for name, note in sorted(notes.items())]

    def _random_targets(self) -> Both:
        """Normal random targets of the outputs' shapes, or {name: of that output's shape} where there are several."""
        rng = np.random.default_rng(0)
        shapes, oracle = self._both(
            lambda: self.candidate.output_shapes(self.inputs.candidate),
            lambda: self.oracle.run(self.inputs.reference, train=False, record=False),
        )
        self._require_same_names(shapes, oracle.outputs)
        targets = {name: random_target(rng, shape, oracle.outputs[name].dtype) for name, shape in shapes.items()}
        others = {
            name: in_layout_of(target, oracle.outputs[name], self.candidate, self.oracle)
            for name, target in targets.items()
        }
        if set(targets) == {OUTPUT}:
            return Both(targets[OUTPUT], others[OUTPUT])
        return Both(_unprefixed(targets), _unprefixed(others))

    def _both(self, run: Callable[[], Candidate], run_reference: Callable[[], Other]) -> tuple[Candidate, Other]:
        """Both results.

        Raises:
            OneSided: if one side raises and the other does not.
            ParityError: if both do.
        """
        results: list[Any] = []
        errors: list[Exception] = []
        for function in (run, run_reference):
            try:
                results.append(function())
            except ParityError:
                raise
            except Exception as error:
                errors.append(error)
                results.append(None)
        if not errors:
            return results[0], results[1]
        candidate, reference = self.candidate.framework, self.oracle.framework
        if len(errors) == 2:
            where = "last" if self.candidate.channels < 0 else "second"
            raise ParityError(
                f"neither network runs on these inputs (as {candidate} takes them: channels {where}), with this loss "
                f"and these targets; {reference}'s error{place_of(errors[1])}: {first_line(errors[1])}"
                f"{looks_channels_first(self.inputs.candidate) if where == 'last' else ''}"
            ) from errors[0]
        raising, other = (candidate, reference) if results[0] is None else (reference, candidate)
        what, words = f"{type(errors[0]).__name__}{place_of(errors[0])}", first_line(errors[0])
        raise OneSided(f"{raising} raises {what}: {words}; {other} gives a result") from errors[0]

    def _require_same_structure(self, run: Run, oracle: Run) -> None:
        self._require_same_names(run.outputs, oracle.outputs)
        if not any(array.size for array in oracle.outputs.values()):
            raise ParityError("the outputs are empty: there is nothing to compare")

    def _require_same_names(self, outputs: Collection[str], others: Collection[str]) -> None:
        if set(outputs) != set(others):
            raise ParityError(
                f"the outputs are built differently: {', '.join(sorted(outputs))} from {self.candidate.framework}, "
                f"{', '.join(sorted(others))} from {self.oracle.framework}; return the same structure from both, "
                "through a small module where one cannot be changed"
            )

    def _require_finite(self, run: Run, oracle: Run) -> None:
        if is_finite(run) or is_finite(oracle) or infinite_alike(run.outputs, oracle.outputs):
            return
        raise ParityError(
            f"both networks give NaN or infinite values: {self.candidate.framework} first in "
            f"{first_not_finite(run)}, {self.oracle.framework} first in {first_not_finite(oracle)}; there is "
            "nothing to compare"
        )


def _parameter(framework: str) -> str:
    return "an nnx.Param" if framework.startswith("Flax") else "a parameter"


def _unprefixed(outputs: Arrays) -> Arrays:
    return {name.removeprefix(f"{OUTPUT}."): array for name, array in outputs.items()}
