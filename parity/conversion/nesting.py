"""The state_dict in what a training script has saved: a dict of tensors among settings, optimisers and other dicts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parity.errors import ParityError

# What training scripts wrap a whole state_dict in.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "state_dict_ema", "ema")
DEEPEST = 100
"""Dicts inside one another in a checkpoint, at most."""
MOST_REPEATS = 10_000
"""How often dicts may be met again under other keys: each level of such sharing can double what they unfold to."""

_SETTINGS = ("hyper_parameters", "hparams", "args", "config", "cfg", "opt")
_OF_THE_NETWORK = ("arch", "architecture", "model_name", "model", "backbone")

IsTensor = Callable[[Any], bool]


def unnested(content: Any, path: Path, is_tensor: IsTensor) -> tuple[dict[str, Any], tuple[str, ...]]:
    """{name: tensor} and what was dropped, one sentence each.

    The only dict that holds tensors is opened, whatever its key. Where several do, a usual wrapper that is by far the
    largest is; otherwise all are kept, with their keys as prefixes ("student.", "teacher."). Optimisers' are dropped.

    Raises:
        ParityError: if there are no named tensors, or dicts without end.
    """
    content, notes = tree(content, path, is_tensor), []
    while isinstance(content, Mapping):
        sizes = {key: size for key, value in content.items() if (size := _size(value, is_tensor))}
        own = sum(map(is_tensor, content.values()))
        if not sizes or 2 * own >= max(sizes.values()):  # the best accuracy stored beside it may be a tensor as well
            break
        large = [key for key, size in sizes.items() if 2 * size >= max(sizes.values())]
        if len(large) > 1 or (len(sizes) > 1 and large[0] not in WRAPPERS):
            dropped = _named(content, except_for=sizes)
            notes.append(
                f"the entries {', '.join(map(repr, sizes))} hold tensors; their names begin with them"
                + (f"; dropped {dropped}" if dropped else "")
            )
            return flattened({key: content[key] for key in sizes}, is_tensor), tuple(notes)
        dropped = _named(content, except_for=large)
        notes.append(f"took the entry {large[0]!r}" + (f" and dropped {dropped}" if dropped else ""))
        content = content[large[0]]
    if not isinstance(content, Mapping):
        count = sum(map(is_tensor, content)) if isinstance(content, list | tuple) else 0
        nameless = f": its {count} tensors have no names, so nothing says where they belong" if count else ""
        raise ParityError(
            f"{path} holds a {type(content).__name__}, not a state_dict{nameless}; save model.state_dict() instead"
        )
    tensors = {str(key): value for key, value in content.items() if is_tensor(value)}
    if not tensors:
        keys = f", only {', '.join(str(key) for key in list(content)[:5])}" if content else ""
        raise ParityError(f"{path} holds no tensors{keys}: it is not a state_dict; save model.state_dict() instead")
    if dropped := _named(content, except_for=[key for key in content if is_tensor(content[key])]):
        notes.append(f"dropped entries that are not tensors: {dropped}")
    return tensors, tuple(notes)


def network_name(content: Any) -> str | None:
    """What a training script calls the network in its checkpoint or in the settings beside it; None for nothing."""
    entries = content if isinstance(content, Mapping) else {}
    for settings in (entries, *(entries.get(key) for key in _SETTINGS)):
        found = settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", {})
        for key in _OF_THE_NETWORK:
            if isinstance(name := found.get(key), str):
                return name
    return None


def tree(content: Any, path: Path, is_tensor: IsTensor) -> Any:
    """The content with dicts that end: one that contains itself is empty there, as is an optimiser's.

    An optimiser's dict is that of `torch.optim.Optimizer.state_dict`, inside another one.

    Raises:
        ParityError: for dicts that are nested too deep or too often.
    """
    seen: set[int] = set()
    repeats = 0

    def opened(value: Any, above: tuple[int, ...]) -> Any:
        nonlocal repeats
        if is_tensor(value) or not isinstance(value, Mapping):
            return value
        if id(value) in above or (above and "param_groups" in value):
            return {}
        repeats += id(value) in seen
        if len(above) == DEEPEST or repeats > MOST_REPEATS:
            problem = (
                f"are nested more than {DEEPEST} deep" if len(above) == DEEPEST else "hold the same dicts too often"
            )
            raise ParityError(f"{path} holds dicts that {problem}; save model.state_dict() instead")
        seen.add(id(value))
        return {key: opened(inner, (*above, id(value))) for key, inner in value.items()}

    return opened(content, ())


def flattened(content: Mapping[Any, Any], is_tensor: IsTensor) -> dict[str, Any]:
    """{dotted path: array} of a `tree`, as Flax's parameters are."""
    result = {}
    for key, value in content.items():
        if is_tensor(value):
            result[str(key)] = value
        elif isinstance(value, Mapping):
            result |= {f"{key}.{name}": inner for name, inner in flattened(value, is_tensor).items()}
    return result


def _size(value: Any, is_tensor: IsTensor) -> int:
    """How many tensors are in nested dicts."""
    if not isinstance(value, Mapping):
        return 0
    return sum(1 if is_tensor(inner) else _size(inner, is_tensor) for inner in value.values())


def _named(content: Mapping[Any, Any], *, except_for: Any) -> str:
    return ", ".join(str(key) for key in content if key not in except_for)
