"""Causes where both networks are in JAX: settings of a layer that differ, and activations read off the values."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from parity.checks.pair import Pair
from parity.checks.tolerance import relative
from parity.conversion.naming import named_modules
from parity.diagnosis.forced import Event, Forced, Tensors
from parity.diagnosis.relation import described
from parity.reports.results import Finding, Report
from parity.sides.base import OUTPUT
from parity.sides.flax import FlaxSide
from parity.sides.recording import Record, flatten_output

MOST = 8
"""How many places are explained."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "no activation": lambda x: x,
    "ReLU": jax.nn.relu,
    "ReLU6": jax.nn.relu6,
    "GELU by tanh": partial(jax.nn.gelu, approximate=True),
    "GELU by erf": partial(jax.nn.gelu, approximate=False),
    "quick GELU, x * sigmoid(1.702 x)": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "squared ReLU": lambda x: jax.nn.relu(x) ** 2,
    "SiLU": jax.nn.silu,
    "hardswish": jax.nn.hard_swish,
    "ELU": jax.nn.elu,
    "SELU": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "hard sigmoid": jax.nn.hard_sigmoid,
    "softsign": jax.nn.soft_sign,
    **{f"leaky ReLU with slope {slope:g}": partial(jax.nn.leaky_relu, negative_slope=slope)
       for slope in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.3)},
}  # fmt: skip

_NOT_ARITHMETIC = ("dtype", "param_dtype", "parent", "name", "promote_dtype", "precision", "kernel_size")


@dataclass(frozen=True, eq=False)
class _Site:
    """A tensor that differs on the reference's own tensors.

    Attributes:
        before: the submodule whose output came last.
        in_layer: whether it is the output of a submodule without any in it, and so of that one's arithmetic.
    """

    event: Event
    before: str
    in_layer: bool
    ours: np.ndarray
    theirs: np.ndarray
    error: float
    limit: float

    @property
    def where(self) -> str:
        kind, path = self.event
        if self.in_layer:
            return f"in {path}"
        if not path:
            return f"after {self.before}"
        return f"between {self.before} and {path}" + ("'s end" if kind == "output" else "")

    def settled_by(self, other: np.ndarray, tensor: np.ndarray) -> bool:
        """Whether `other` is `tensor`, but for rounding or a thousandth of the difference."""
        error = relative(other, tensor) if other.shape == tensor.shape else np.inf
        return error <= max(self.limit, 0.0 if np.isinf(self.error) else 1e-3 * self.error)


def causes_in_jax(pair: Pair, report: Report) -> list[Finding]:
    """A finding for each place where the candidate parts from the reference on the reference's own tensors.

    [] where weights differ from the start, or nothing did in the forward pass.
    """
    assert isinstance(pair.candidate, FlaxSide)
    assert isinstance(pair.oracle, FlaxSide)
    modes = [row.mode for row in report.failures if row.check in ("forward", "activations")]
    others = pair.oracle.state()
    state = {name: value for name, value in pair.candidate.state().items() if name in others}
    if not modes or any(not np.array_equal(value, others[name]) for name, value in state.items()):
        return []
    train = modes[0] == "train"
    places = _Places(pair, pair.candidate, pair.oracle, train)
    findings, passed_on = [], False
    for site in places.sites[:MOST]:
        words = places.explained(site)
        if passed_on and not site.in_layer and not words:
            continue  # what no layer was handed, such as a residual branch's input, may have come from an earlier place
        words = words or _unexplained(site)
        if all(finding.cause != words for finding in findings):
            findings.append(Finding(site.event[1] or OUTPUT, words, _evidence(site)))
        if site.ours.shape != site.theirs.shape:
            break  # the reference's could not take its place
        passed_on |= not site.in_layer
    return findings


def _evidence(site: _Site) -> str:
    if site.ours.shape != site.theirs.shape:
        return f"shape {site.ours.shape}, the reference's is {site.theirs.shape}"
    return f"relative error {site.error:.1e} on the reference's own tensors"


def _unexplained(site: _Site) -> str:
    path = site.event[1]
    if not path:
        where = "every layer agrees: the difference arises after the last of them"
    elif site.in_layer:
        where = f"{path} differs on the reference's input"
    else:
        where = f"every layer before it agrees: the difference arises {site.where}"
    relation = described(site.ours, site.theirs, site.limit)
    return f"{where}; {relation}".removesuffix("; ").replace("PyTorch's", "the reference's")


class _Places:
    def __init__(self, pair: Pair, ours: FlaxSide, theirs: FlaxSide, train: bool):
        self.pair, self.train = pair, train
        self._sides = ours, theirs
        self._arguments, self._outputs = theirs.submodule_calls(pair.inputs.reference, train=train)
        self._result = pair.runs(train).noise.oracle["outputs"]
        forced = Forced(pair, self._arguments, self._outputs, train=train)
        tensors = forced.run()
        self.sites = list(self._differing(tensors, forced.replaced))

    def _differing(self, tensors: Tensors, replaced: set[Event]) -> Iterator[_Site]:
        """In order of computation."""
        profile, floors = self.pair.profile, self.pair.runs(self.train).noise.floors
        before = "the inputs"
        for event, theirs in (*self._events(), (("output", ""), self._result)):
            path = event[1]
            in_layer = event[0] == "output" and bool(path) and not self._holds_others(path)
            for name, array in theirs.items():
                ours = tensors.get(event, {}).get(name)
                if ours is None or not isinstance(array, np.ndarray):
                    continue
                group = floors["activations"] if path else floors["outputs"]
                floor = min(group.get(path or name, 0.0), profile.most)
                limit = max(profile.k * floor, profile.least_alone)
                error = relative(ours, array) if ours.shape == array.shape else np.inf
                if not error <= limit:
                    yield _Site(event, before, in_layer, ours, array, error, limit)
            if event[0] == "output" and event in replaced:
                before = path

    def _holds_others(self, path: str) -> bool:
        return any(other.startswith(f"{path}.") for other in self._arguments)

    def _events(self) -> Iterator[tuple[Event, Record]]:
        """The reference's tensors; what a submodule takes comes before what those in it do."""
        begun: set[str] = set()
        for key in self._arguments:
            parts = key.split(".")
            for path in (".".join(parts[: count + 1]) for count in range(len(parts))):
                if path in self._arguments and path not in begun:
                    begun.add(path)
                    yield ("input", path), {str(i): array for i, array in enumerate(self._arguments[path])}
            yield ("output", key), {name: array for name, array in self._outputs.items()
                                    if name == key or name.startswith(f"{key}.")}  # fmt: skip

    def explained(self, site: _Site) -> str:
        """What explains it, in plain words, or ""."""
        return self._setting(site) if site.in_layer else self._activation(site)

    def _setting(self, site: _Site) -> str:
        """Settings of the layer that differ between the two, and without which both give the same."""
        path = site.event[1].partition("#")[0]
        layers = [_layer(side, path, self.train) for side in self._sides]
        settings = [_settings(layer) or _linen_settings(side, path, inputs)
                    for layer, side, inputs in zip(layers, self._sides, self.pair.inputs, strict=True)]  # fmt: skip
        differing = {name: tuple(one[name] for one in settings) for name in settings[0].keys() & settings[1].keys()
                     if not _equal(settings[0][name], settings[1][name])}  # fmt: skip
        given = self._arguments[site.event[1]]
        which = 0 if layers[0] is not None else 1
        layer, wanted = layers[which], (site.theirs, site.ours)[which]
        if layer is None or not differing or any(array is None for array in given):
            return ""

        def settles(names: tuple[str, ...]) -> bool:
            with self._sides[which].arithmetic():
                changed = nnx.clone(layer)
                try:
                    for name in names:
                        setattr(changed, name, differing[name][1 - which])
                    output = changed(*map(jnp.asarray, given))
                except Exception:  # settings that do not fit together
                    return False
                first = next(iter(flatten_output(output).values()))
            return site.settled_by(np.asarray(first), wanted)

        for count in dict.fromkeys((1, 2, len(differing))):
            for names in itertools.combinations(sorted(differing), count):
                if settles(names):
                    return "; ".join(
                        f"{name} of {path} is {_spelt(differing[name][0])}, the reference's is "
                        f"{_spelt(differing[name][1])}" for name in names
                    )  # fmt: skip
        return ""

    def _activation(self, site: _Site) -> str:
        """The activations by which either network made this from the output of the last layer before it."""
        made = self._outputs.get(site.before)
        if made is None or made.shape != site.theirs.shape or made.shape != site.ours.shape:
            return ""
        with self._sides[0].arithmetic():
            values = {words: np.asarray(function(jnp.asarray(made))) for words, function in ACTIVATIONS.items()}
        ours, theirs = ([words for words, value in values.items() if site.settled_by(tensor, value)]
                        for tensor in (site.ours, site.theirs))  # fmt: skip
        if not ours or not theirs or set(ours) & set(theirs):
            return ""
        words = [" or ".join([*names[:3], *["others"] * (len(names) > 3)]) for names in (ours, theirs)]
        return f"{site.where}, {words[0]} is applied where the reference applies {words[1]}"


def _layer(side: FlaxSide, path: str, train: bool) -> nnx.Module | None:
    """The NNX module at PyTorch's path, with the side's values; None if a Linen one is there, or none."""
    modules = {side.torch_path(name): module for name, module in named_modules(side.model(train=train))}
    return modules.get(path)


def _settings(layer: nnx.Module | None) -> Mapping[str, Any]:
    """What an NNX layer was built with, without its variables."""
    fields = vars(layer) if layer is not None else {}
    return {name: value for name, value in fields.items() if _is_setting(name, value)}


def _is_setting(name: str, value: Any) -> bool:
    known = isinstance(value, bool | int | float | str | tuple | list) or value is None or callable(value)
    internal = name.startswith("_") or name.endswith("_init") or name in _NOT_ARITHMETIC
    return known and not internal and not isinstance(value, nnx.Variable | nnx.Module)


def _equal(ours: Any, theirs: Any) -> bool:
    return ours is theirs or (not callable(ours) and ours == theirs)


def _spelt(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def _linen_settings(side: FlaxSide, path: str, inputs: Any) -> dict[str, Any]:
    """The same of the Linen module there, which is a dataclass and exists while its network is called."""
    found: dict[str, Any] = {}

    def intercept(function: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        module: Any = context.module
        if side.torch_path(".".join(module.path)) == path:
            fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
            found.update({name: value for name, value in fields.items() if _is_setting(name, value)})
        return function(*args, **kwargs)

    with linen.intercept_methods(intercept):
        side.calls(inputs)
    return found
