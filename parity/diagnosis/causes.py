"""Every place where a network parts from the reference on the reference's own tensors, and what would explain it."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parity.checks.isolation import Recorded, can_be_taken_apart, isolate, record
from parity.checks.layout import layouts
from parity.checks.pair import Pair
from parity.checks.tolerance import relative
from parity.diagnosis import (  # noqa: F401  (the families register themselves)
    activations,
    attention,
    between,
    convolutions,
    embeddings,
    norms,
    order,
    pooling,
    resizing,
)
from parity.diagnosis.alterations import variants
from parity.diagnosis.forced import Event, Forced, Tensors
from parity.diagnosis.forced_torch import ForcedTorch
from parity.diagnosis.layers import moved_stride, why
from parity.diagnosis.program import Program, Replacement
from parity.diagnosis.relation import described
from parity.reports.results import Finding
from parity.sides.arguments import named_arrays
from parity.sides.base import in_layout_of
from parity.sides.torch import TorchSide

MOST = 8
"""How many places are explained; a fault of a layer's class is in all of its layers, and one of them is enough."""

MOST_CALLS = 60
"""How many calls before a place are altered, the nearest ones: each alteration is a pass of the reference."""


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor that differs although everything it was made of agrees.

    Attributes:
        event: which it is.
        name: of the argument or output.
        before: the last submodule that ran before it, or "the inputs".
        ours, theirs: in the reference's layout; their shapes may differ.
        error, floor, limit: ours, PyTorch's own in other arrangements, and the one allowed.
    """

    event: Event
    name: str
    before: str
    ours: np.ndarray
    theirs: np.ndarray
    error: float
    floor: float
    limit: float

    @property
    def where(self) -> str:
        kind, path = self.event
        if kind == "input":
            return f"between {self.before} and {path}"
        return path or "output"

    @property
    def place(self) -> str:
        kind, path = self.event
        if kind == "output" and path:
            return f"in {path}"
        return self.where if path else f"after {self.before}"

    def settled_by(self, tensor: np.ndarray | None) -> float:
        """The error of this in place of the reference's, or infinity where it explains nothing."""
        if tensor is None or tensor.shape != self.ours.shape:
            return np.inf
        error = relative(self.ours, tensor)
        allowed = self.limit if np.isinf(self.error) else max(self.limit, 1e-3 * self.error)
        return error if error <= allowed else np.inf


def causes(pair: Pair, *, train: bool) -> list[Finding]:
    """A finding for each independent place of disagreement, in order of computation; [] where none is found."""
    places = _Places(pair, train)
    sites = places.sites
    if not sites:
        return []
    largest = max(sites, key=lambda site: min(site.error, 1e300))
    chosen = sites[:MOST] if largest in sites[:MOST] else [*sites[: MOST - 1], largest]
    reordered, said = places.reordered(), set()
    findings: list[Finding] = []
    for site in chosen:
        words = reordered.get(site) or places.explained(site)
        if words in said:
            continue
        if words:
            said.add(words)
        evidence = f"relative error {site.error:.1e}, PyTorch's own {site.floor:.1e}"
        if site is sites[0]:
            evidence += f"; the output's error is {_output_error(pair, train):.1e}"
            if site.event[0] == "output" and site.event[1]:
                evidence += "; nothing before it differs" if site.before == "the inputs" else f"; {site.before} agrees"
        else:
            evidence += "; on PyTorch's own tensors"
        if site is largest and len(sites) > 1:
            evidence += "; the largest difference"
        findings.append(Finding(site.where, words or _unexplained(site), evidence))
    if len(sites) > len(chosen):
        findings.append(Finding("", f"{len(sites) - len(chosen)} more places differ on PyTorch's own tensors"))
    return findings


def _output_error(pair: Pair, train: bool) -> float:
    rows = pair.judge("forward", "", "outputs", pair.runs(train).candidate.outputs, pair.runs(train).noise)
    return max(row.error.relative for row in rows)


def _unexplained(site: Site) -> str:
    kind, path = site.event
    relation = described(site.ours, site.theirs, site.limit)
    relation = f"; {relation}" if relation else ""
    if kind == "input":
        where = f"{path} agrees on PyTorch's input: the difference arises between {site.before} and {path}"
    elif path:
        where = (
            f"{path} is the first to differ" if site.before == "the inputs" else f"{path} differs on PyTorch's input"
        )
    else:
        where = "every submodule agrees: the difference arises after the last of them"
    return where + relation


class _Places:
    """The sites of a pair in one mode."""

    def __init__(self, pair: Pair, train: bool):
        self.pair, self.train = pair, train
        self._side: Any = pair.oracle
        everything = Program(self._run, self._side.module)
        outputs = {
            name: array
            for (kind, _), arrays in everything.tensors.items()
            if kind == "output"
            for name, array in arrays.items()
        }
        forced = ForcedTorch if isinstance(pair.candidate, TorchSide) else Forced
        self._forced = forced(pair, everything.arguments, outputs, train=train)
        tensors = self._forced.run()
        self.program = Program(self._run, self._side.module, self._forced.replaced)
        self._recorded: Recorded | None = None
        self._wide: Tensors | None = None
        self._released: set[Event] = set()
        self.sites = self._without_consequences(self._without_boundaries(self._differing(tensors)))
        self.tensors = tensors

    def _run(self) -> Any:
        side = self._side
        kept = {name: buffer.clone() for name, buffer in side.module.named_buffers()}
        try:
            side.set_mode(self.train)
            return side.forward(side.array(self.pair.inputs.reference))
        finally:
            with torch.no_grad():
                for name, buffer in side.module.named_buffers():
                    buffer.copy_(kept[name])

    def _differing(self, tensors: Tensors) -> list[Site]:
        profile, floors = self.pair.profile, self.pair.runs(self.train).noise.floors["activations"]
        sites, before = [], "the inputs"
        for event, arrays in self.program.tensors.items():
            kind, path = event
            for name, theirs in arrays.items():
                ours = tensors.get(event, {}).get(name)
                if ours is None or event in self._released:
                    continue
                ours = self._laid_out(ours, theirs)
                floor = min(floors.get(path, 0.0), profile.most)
                limit = max(profile.k * floor, profile.least_alone)
                error = relative(ours, theirs) if ours.shape == theirs.shape else np.inf
                reshaped = layouts(ours, theirs.shape) if event[1] and ours.shape != theirs.shape else ()
                if not error <= limit and not any(relative(array, theirs) <= limit for _, array in reshaped):
                    sites.append(Site(event, name, before, ours, theirs, error, floor, limit))
            if kind == "output" and event in self._forced.replaced:
                before = path
        return sites

    def _laid_out(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Ours in the reference's layout, also where its height and width are others."""
        candidate, reference = self.pair.candidate, self.pair.reference
        laid_out = in_layout_of(ours, theirs, candidate, reference)
        if laid_out.shape == theirs.shape or not laid_out.ndim == theirs.ndim > 2:
            return laid_out
        axis = reference.channels
        moved = np.moveaxis(ours, candidate.channels, axis)
        return moved if moved.shape[axis] == theirs.shape[axis] else laid_out

    def _without_boundaries(self, sites: list[Site]) -> list[Site]:
        """Those that something computed later depends on: a module may end before or after its activation."""
        for event in [site.event for site in sites]:
            if event[0] != "output" or event not in self._forced.replaced:
                continue
            released = self._forced.run({*self._released, event})
            others = {(site.event, site.name): site for site in sites if site.event != event}
            after = [site for site in self._differing(released) if site.event != event]
            if all(_is_same(others.get((site.event, site.name)), site) for site in after):
                self._released.add(event)
                sites = after
        return sites

    def _without_consequences(self, sites: list[Site]) -> list[Site]:
        """Those that no tensor of another shape went into, which the reference's could not replace."""
        kept: list[Site] = []
        misshapen: list[set[int]] = []
        for site in sites:
            made_by = {call.index for call in self.program.segment(site.event)}
            if any(calls and calls <= made_by for calls in misshapen):
                continue
            kept.append(site)
            if site.ours.shape != site.theirs.shape:
                misshapen.append(made_by)
        return kept

    def explained(self, site: Site) -> str:
        """What explains it, in plain words, or ""."""
        if words := self._layer(site):
            return words
        words = self._precision(site) or _either(self._altered(site)) or self._wiring(site)
        return f"{site.place}, {words}" if words else ""

    def reordered(self) -> dict[Site, str]:
        """The sites that follow from two submodules being called in the other order, such as pre- and post-norm."""
        theirs = self.program.tensors
        inputs = [site for site in self.sites if site.event[0] == "input"]
        found: dict[Site, str] = {}
        for later, earlier in itertools.permutations(inputs, 2):
            first, second = earlier.event[1], later.event[1]
            before = theirs["input", first].get(earlier.name)
            after = theirs.get(("output", second), {}).get(second)
            if np.inf in (later.settled_by(before), earlier.settled_by(after)):
                continue
            words = f"{second} comes before {first}, in PyTorch after it"
            taken = theirs["input", second].get(later.name)  # is then what comes after both
            found |= dict.fromkeys((later, earlier), words)
            found |= {site: words for site in self.sites if site not in found and site.settled_by(taken) < np.inf}
        return found

    def _layer(self, site: Site) -> str:
        """The hypotheses that are tried on the candidate's own layer, and those about the function before one."""
        kind, path = site.event
        if not path or site.name not in (path, "0") or not can_be_taken_apart(self.pair):
            return ""
        with contextlib.suppress(ValueError, TypeError, AttributeError, RuntimeError, LookupError):
            self._recorded = self._recorded or self._record()
            layer = isolate(self.pair, self._recorded, path, train=self.train)
            if layer is None:
                return ""
            if kind == "input":
                return between.why(self.pair, self._recorded, site.before, layer)
            if layer.error() > layer.limit:
                return moved_stride(self.pair, self._recorded, layer) or why(layer)
        return ""

    def _record(self) -> Recorded:
        if self.pair.precision != "float64":
            return record(self.pair, train=self.train)
        # Both have been recorded already, in the precision under test.
        inputs = {path: arrays["0"] for (kind, path), arrays in self.tensors.items()
                  if kind == "input" and list(arrays) == ["0"]}  # fmt: skip
        reference = {"input": {}, "output": {}}
        for (kind, path), arrays in self.program.tensors.items():
            name = "0" if kind == "input" else path
            if path and list(arrays) == [name]:
                reference[kind][path] = torch.from_numpy(arrays[name])
        return Recorded(inputs, reference["input"], reference["output"])

    def _precision(self, site: Site) -> str:
        if self.pair.precision != "float64":
            return ""
        if self._wide is None:
            self._wide = self._forced.run_wide(self._released)
        ours = self._wide.get(site.event, {}).get(site.name)
        if ours is None:
            return ""
        ours = self._laid_out(ours, site.theirs)
        if ours.shape != site.theirs.shape or relative(ours, site.theirs) > site.limit:
            return ""
        names = " and ".join(self._forced.narrowed)
        return f"values are converted to {names} on the way, where PyTorch computes in float64: without that they agree"

    def _altered(self, site: Site) -> dict[str, float]:
        """{words: error left} of every alteration of the reference that gives what the candidate has."""
        found: dict[str, float] = {}
        x = torch.from_numpy(site.theirs)
        if x.is_floating_point():
            for words, function in activations.additional():
                with contextlib.suppress(RuntimeError, IndexError):
                    if (error := site.settled_by(function(x).numpy())) < np.inf:
                        found[words] = error
        for words, changes in self._alterations(site):
            tensor = self.program.until(site.event, site.name, changes)
            if (error := site.settled_by(tensor)) < np.inf:
                found[words] = min(error, found.get(words, np.inf))
        return found

    def _alterations(self, site: Site) -> Iterator[tuple[str, Mapping[int, Replacement]]]:
        segment = self.program.segment(site.event)
        for call in segment[: -MOST_CALLS - 1 : -1]:
            for words, replacement in variants(call):
                yield words, {call.index: replacement}
        yield from attention.together(segment)

    def _wiring(self, site: Site) -> str:
        """Another tensor of the reference that the candidate takes instead."""
        taken = []
        for event, arrays in self.program.tensors.items():
            for name, array in arrays.items():
                if site.settled_by(array) < np.inf and event != site.event:
                    taken.append(_spelt(event, name))
        for name, array in named_arrays(self.pair.inputs.reference).items():
            if site.settled_by(array) < np.inf:
                taken.insert(0, f"the network's input {name}".rstrip())
        if not taken:
            return ""
        kind, path = site.event
        verb = f"{path} takes" if kind == "input" else f"{path or 'the network'} gives"
        return f"{verb} what is {' and '.join(taken[:2])} in PyTorch"


def _is_same(before: Site | None, after: Site) -> bool:
    """Whether a site was there before, with the very same tensor."""
    return (
        before is not None
        and before.ours.shape == after.ours.shape
        and relative(after.ours, before.ours) <= after.limit
    )


def _spelt(event: Event, name: str) -> str:
    kind, path = event
    return f"the {kind} of {path}" if path else "the output"


def _either(found: Mapping[str, float]) -> str:
    """The best alterations, all those that this data cannot tell apart."""
    if not found:
        return ""
    best = max(min(found.values()), 1e-13)
    words = [words for words, error in found.items() if error <= 1e3 * best]
    return words[0] if len(words) == 1 else "either " + ", or ".join(words[:5])
