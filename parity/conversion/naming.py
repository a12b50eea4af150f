"""The structural map between a PyTorch state_dict and an NNX module, used in both directions.

Where a Flax module's attributes are named as the PyTorch module's, a parameter's path is the same on both sides and
only its last part differs, by the kind of layer: a convolution's `weight` (O, I, h, w) is a `kernel` (h, w, I, O), and
so on. One function per kind of layer says how; `register_layer` adds another.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flax import nnx

from parity.conversion.modules import children, variables
from parity.conversion.rules import LeafRule, rules_for
from parity.errors import ParityError

NAMES_HINT = """
Where names differ, map them with names={Flax path: PyTorch path}; for a layer whose variables have no counterparts of
their own, add a rule with parity.register_layer."""


@dataclass(frozen=True)
class Leaf:
    """A variable of a Flax module and its counterpart in PyTorch."""

    path: str
    torch_name: str
    variable: nnx.Variable
    rule: LeafRule

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.rule.to_torch(np.broadcast_to(np.int8(0), self.variable.shape)).shape

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
        names: where the two sides are named differently, {Flax module path: PyTorch module path}; the longest match
            wins, and its children follow.

    Raises:
        ParityError: for a layer without a rule, a name without a module, or a model without parameters.
    """
    collected: list[Leaf] = []
    paths = [path for path, _ in named_modules(model)]
    for name in names or {}:
        if name not in paths:
            raise ParityError(f"names={{Flax path: PyTorch path}}: the Flax network has no module {name!r}")
    for path, module in named_modules(model):
        own = variables(module)
        if not own:
            continue
        rules = rules_for(module, path)
        if lacking := own.keys() - rules.keys():
            raise ParityError(f"the rule for {type(module).__name__} ({path}) does not cover {', '.join(lacking)}")
        torch_path = _renamed(path, names or {})
        for name, rule in rules.items():
            if name in own:
                collected.append(Leaf(_join(path, name), _join(torch_path, rule.torch_name), own[name], rule))
    if not collected:
        raise ParityError(f"the {type(model).__name__} has no parameters")
    return collected


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _renamed(path: str, names: Mapping[str, str]) -> str:
    for theirs in sorted(names, key=len, reverse=True):
        if path == theirs or path.startswith(theirs + "."):
            return names[theirs] + path[len(theirs) :]
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
    limit: int = 20,
) -> str:
    """One text that lists every entry of either side without a counterpart, with the nearest names."""

    def section(title: str, rows: list[str]) -> list[str]:
        if not rows:
            return []
        more = [f"  ... and {len(rows) - limit} more"] if len(rows) > limit else []
        return [f"{title} ({len(rows)}):", *rows[:limit], *more]

    def near(name: str, others: Mapping[str, tuple[int, ...]]) -> str:
        match = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        return f"  (nearest: {match[0]})" if match else ""

    lines = [f"{source} and {target} do not correspond."]
    lines += section(f"in {target} only", [f"  {n} {s}{near(n, unexpected)}" for n, s in missing.items()])
    lines += section(f"in {source} only", [f"  {n} {s}{near(n, missing)}" for n, s in unexpected.items()])
    lines += section(
        "of different shapes",
        [f"  {n}: {theirs} in {source}, {ours} in {target}" for n, (theirs, ours) in misshapen.items()],
    )
    return "\n".join(lines)
