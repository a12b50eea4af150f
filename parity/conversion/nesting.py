"""The state_dict in what a training script has saved: a dict of tensors among settings, optimisers and other dicts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parity.errors import ParityError

# What training scripts wrap a whole state_dict in.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "state_dict_ema", "ema")

IsTensor = Callable[[Any], bool]


def unnested(content: Any, path: Path, is_tensor: IsTensor) -> tuple[dict[str, Any], tuple[str, ...]]:
    """{name: tensor} and what was dropped, one sentence each.

    The only dict that holds tensors is opened, whatever its key. Where several do, a usual wrapper that is by far the
    largest is; otherwise all are kept, with their keys as prefixes ("student.", "teacher."). Optimisers' are dropped.

    Raises:
        ParityError: if there are no named tensors.
    """
    notes = []
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
            return _flat({key: content[key] for key in sizes}, is_tensor), tuple(notes)
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


def flattened(tree: Mapping[Any, Any], is_tensor: IsTensor) -> dict[str, Any]:
    """{dotted path: array} of nested dicts, as Flax's parameters are."""
    return _flat(tree, is_tensor)


def _size(value: Any, is_tensor: IsTensor) -> int:
    """How many tensors are in nested dicts; an optimiser's (`torch.optim.Optimizer.state_dict`) count for none."""
    if not isinstance(value, Mapping) or "param_groups" in value:
        return 0
    return sum(1 if is_tensor(inner) else _size(inner, is_tensor) for inner in value.values())


def _flat(tree: Mapping[Any, Any], is_tensor: IsTensor) -> dict[str, Any]:
    result = {}
    for key, value in tree.items():
        if is_tensor(value):
            result[str(key)] = value
        elif isinstance(value, Mapping) and "param_groups" not in value:
            result |= {f"{key}.{name}": inner for name, inner in _flat(value, is_tensor).items()}
    return result


def _named(content: Mapping[Any, Any], *, except_for: Any) -> str:
    return ", ".join(str(key) for key in content if key not in except_for)
