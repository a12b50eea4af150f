"""The structural map between a PyTorch state_dict and an NNX module, used in both directions.

Where a Flax module's attributes are named as the PyTorch module's, a parameter's path is the same on both sides and
only its last part differs, by the kind of layer: a convolution's `weight` (O, I, h, w) is a `kernel` (h, w, I, O), and
so on. One function per kind of layer says how; `register_layer` adds another.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from flax import nnx

from parity.conversion.modules import all_variables, children, variables
from parity.conversion.recurrent import other_bias
from parity.conversion.rules import LeafRule, has_rules, rules_for
from parity.conversion.stacked import Found, Layer, stacks
from parity.conversion.trees import is_tree
from parity.errors import ParityError

NAMES_HINT = """
Where names differ, map them with names={Flax path: PyTorch path} (parity.match_names proposes one); for a layer whose
variables have no counterparts of their own, add a rule with parity.register_layer."""


@dataclass(frozen=True)
class Leaf:
    """A variable of a Flax module and its counterpart in PyTorch.

    Where PyTorch keeps several variables in one tensor there are more variables, and a value is a tuple.
    """

    path: str
    torch_name: str
    variables: tuple[nnx.Variable | Layer, ...]
    rule: LeafRule

    @property
    def variable(self) -> nnx.Variable | Layer:
        """The first: all are of one kind and type."""
        return self.variables[0]

    @property
    def whole(self) -> tuple[nnx.Variable, ...]:
        """The variables that Flax holds: of all layers, where layers are stacked."""
        return tuple(part.variable if isinstance(part, Layer) else part for part in self.variables)

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.whole[0], nnx.Param)

    def value(self) -> Any:
        values = tuple(variable.get_value() for variable in self.variables)
        return values if self.rule.others else values[0]

    def set_value(self, value: Any) -> None:
        for variable, part in zip(self.variables, value if self.rule.others else (value,), strict=True):
            variable.set_value(part)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        empty = tuple(np.broadcast_to(np.int8(0), variable.shape) for variable in self.variables)
        return self.rule.to_torch(empty if self.rule.others else empty[0]).shape

    @property
    def addend(self) -> str | None:
        """The name of what PyTorch adds to it, where that has no variable of its own."""
        return None if self.rule.summed is None else other_bias(self.torch_name)

    @property
    def is_counter(self) -> bool:
        """Whether this is BatchNorm's count of updates, which files from before 2018 lack."""
        return self.rule.torch_name == "num_batches_tracked"


def named_modules(module: nnx.Module, path: str = "") -> Iterator[tuple[str, nnx.Module]]:
    """Every module with its dotted path, as `torch.nn.Module.named_modules` gives them, parents before children.

    `nnx.Sequential` keeps its children under `layers`, which has no counterpart in PyTorch's names and is dropped.
    """
    yield path, module
    for name, child in children(module).items():
        if isinstance(module, nnx.Sequential):
            yield from list(named_modules(child, path))[1:]
        else:
            yield from named_modules(child, f"{path}.{name}" if path else name)


def leaves(model: nnx.Module, names: Mapping[str, str] | None = None) -> list[Leaf]:
    """Every parameter and statistic of `model` with its counterpart's name.

    They come in the order of definition, or in alphabetical order for a model that went through an NNX transform
    (`nnx.eval_shape`, `nnx.merge`), which loses the former.

    Args:
        model: an NNX module; its variables may be abstract (`nnx.eval_shape`).
        names: where the two sides are named differently, {Flax path: PyTorch path}, of a module or of a variable; the
            longest match wins, and what a module holds follows. An empty PyTorch path stands for the whole network.

    Raises:
        ParityError: for a layer without a rule, layers stacked along an axis that is not the first, a name without a
            module, a variable that Flax holds where this package does not find it, or a model without parameters.
    """
    found = _unstacked(list(_found(model)))
    paths = {path for path, _ in named_modules(model)} | {leaf.path for leaf in found}
    known = paths | {parent for path in paths for parent in _parents(path)}
    for name in names or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise ParityError(f"names={{Flax path: PyTorch path}}: the Flax network has no module {name!r}{hint}")
    if not found:
        raise ParityError(f"the {type(model).__name__} has no parameters")
    covered = {id(variable) for leaf in found for variable in leaf.whole}
    if lost := [path for path, variable in all_variables(model).items() if id(variable) not in covered]:
        raise ParityError(
            f"{', '.join(lost[:8])} of the {type(model).__name__} cannot be reached through attributes, lists, tuples "
            "and mappings: hold modules and variables in those"
        )
    return [replace(leaf, torch_name=_torch_name(leaf, names or {})) for leaf in found]


def _found(model: nnx.Module) -> Iterator[Leaf]:
    """Every leaf, under the name that it has without a map of names."""
    taken: set[str] = set()  # submodules whose variables the rule of a parent covers
    for path, module in named_modules(model):
        own = variables(module)
        if path in taken or not (own or children(module)):
            continue
        rules = rules_for(module, path) if own or has_rules(module) else {}
        below = {name.rpartition(".")[0] for name in rules if name not in own} - {""}
        for child_path in below if not is_tree(module) else ():
            child = _child(module, child_path)
            if child is not None:
                own |= {_join(child_path, name): variable for name, variable in variables(child).items()}
                taken |= {_join(path, covered) for covered in (child_path, *_parents(child_path))}
        others = {name for rule in rules.values() for name in rule.others}
        taken |= {_join(path, name.rpartition(".")[0]) for name in others}
        if lacking := own.keys() - rules.keys() - others:
            raise ParityError(f"the rule for {type(module).__name__} ({path}) does not cover {', '.join(lacking)}")
        for name, rule in rules.items():
            if name in own:
                parts = [_variable(module, other) for other in rule.others]
                yield Leaf(_join(path, name), _join(path, rule.torch_name), (own[name], *parts), rule)


def _child(module: nnx.Module, path: str) -> nnx.Module | None:
    """The submodule at that path; None if there is none."""
    return next((child for name, child in named_modules(module) if name == path), None)


def _variable(module: nnx.Module, name: str) -> nnx.Variable:
    for part in name.split("."):
        module = getattr(module, part)
    return cast(nnx.Variable, module)


def _unstacked(found: list[Leaf]) -> list[Leaf]:
    """A leaf for each layer of those that are stacked, named as in a list of layers: "blocks.0.linear.kernel"."""
    modules = [Found(leaf.path.rpartition(".")[0], leaf.variable.shape, leaf.rule.ndim) for leaf in found]
    lengths = stacks(modules)
    result: list[Leaf] = []
    for leaf in found:
        stack = next((path for path in lengths if leaf.path.startswith(f"{path}.")), "")
        for index in range(lengths.get(stack, 0)):
            parts = tuple(Layer(whole, index) for whole in leaf.whole)
            path, torch_name = (f"{stack}.{index}{name[len(stack) :]}" for name in (leaf.path, leaf.torch_name))
            result.append(Leaf(path, torch_name, parts, leaf.rule))
        if not stack:
            _require_axes(leaf)
            result.append(leaf)
    return result


def _require_axes(leaf: Leaf) -> None:
    shape, ndim = leaf.variable.shape, leaf.rule.ndim
    if ndim is None or len(shape) == ndim:
        return
    raise ParityError(
        f"{leaf.path} has the shape {shape}, {len(shape)} axes where such a layer has {ndim}: layers stacked by "
        "nnx.vmap or nnx.scan can be converted where each of their variables has one more axis, the first; others have "
        "to be built as an nnx.List of layers"
    )


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _torch_name(leaf: Leaf, names: Mapping[str, str]) -> str:
    """The whole name where the variable itself is in the map, and otherwise its module's, renamed."""
    return names[leaf.path] if leaf.path in names else renamed(leaf.torch_name, names)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A path of a module, of what it holds or of a call ("conv#2"), with the longest match in `names` replaced."""
    for theirs in sorted(names, key=len, reverse=True):
        if path == theirs or path.startswith((theirs + ".", theirs + "#")) or not theirs:
            rest = path[len(theirs) :].removeprefix(".")
            return names[theirs] + rest if rest.startswith("#") else _join(names[theirs], rest)
    return path


def find_prefix(keys: Iterable[str], expected: Iterable[str]) -> str:
    """The common prefix of the expected names in `keys`, such as "module.", or "".

    Wrappers such as `DistributedDataParallel` and `torch.compile` put it there.
    """
    keys, expected = set(keys), list(expected)
    if keys & set(expected):
        return ""
    for key in sorted(keys):
        for name in expected:
            prefix = key.removesuffix(name)
            if (
                prefix != key
                and prefix.endswith(".")
                and sum(prefix + name in keys for name in expected) > len(expected) / 2
            ):
                return prefix
    return ""


def homeless_counters(names: Iterable[str], known: Collection[str]) -> set[str]:
    """Update counters of norms that keep none in Flax, such as `nnx.BatchNorm`; no output depends on them."""
    counter = ".num_batches_tracked"
    return {
        name
        for name in names
        if f".{name}".endswith(counter)
        and name not in known
        and f"{name.removesuffix(counter[1:])}running_mean" in known
    }


def mismatch_message(
    missing: Mapping[str, tuple[int, ...]],
    unexpected: Mapping[str, tuple[int, ...]],
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    source: str = "the state_dict",
    target: str = "the model",
    why: str = "",
    limit: int = 20,
) -> str:
    """One text that lists every entry of either side without a counterpart, with the nearest names, after `why`."""

    def section(title: str, rows: list[str]) -> list[str]:
        if not rows:
            return []
        more = [f"  ... and {len(rows) - limit} more"] if len(rows) > limit else []
        return [f"{title} ({len(rows)}):", *rows[:limit], *more]

    def near(name: str, others: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
        alike = [other for other, its_shape in others.items() if its_shape == shape]
        match = difflib.get_close_matches(name, alike, n=1, cutoff=0.6)
        return f"  (nearest: {match[0]})" if match else ""

    lines = [f"{source} and {target} do not correspond{f': {why}' if why else ''}."]
    lines += section(f"in {target} only", [f"  {n} {s}{near(n, unexpected, s)}" for n, s in missing.items()])
    lines += section(f"in {source} only", [f"  {n} {s}{near(n, missing, s)}" for n, s in unexpected.items()])
    lines += section(
        "of different shapes",
        [f"  {n}: {theirs} in {source}, {ours} in {target}" for n, (theirs, ours) in misshapen.items()],
    )
    return "\n".join(lines)
