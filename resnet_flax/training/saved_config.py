"""A run's configuration as JSON and back, and where two of them differ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from parity.options import options_of
from resnet_flax.data.specs import is_path, scheme_of
from resnet_flax.data.transforms import TRANSFORMS
from resnet_flax.errors import UserError
from resnet_flax.training.config import RunConfig, TrainConfig

PATHS = ("workdir", "data_dir", "classes", "labels", "real_labels", "synsets")  # the fields that are paths

Field = tuple[str, ...]  # its path, as in `Option`
RESUMED: frozenset[Field] = frozenset({("schedule", "epochs"), *(("run", field.name) for field in fields(RunConfig))})
OF_A_HOST: frozenset[Field] = frozenset({("run", "workers"), ("run", "workdir")})

# Fields that earlier versions had, and the values with which a run does not depend on them.
REMOVED: dict[str, tuple[Any, ...]] = {"decoupled_decay": (None,)}


def as_json(config: Any) -> Any:
    """A tree of dataclasses as JSON has it; a transform also gets the name of its class, as "type"."""
    if is_dataclass(config):
        name = type(config).__name__
        tag = {"type": name} if name in TRANSFORMS else {}
        return tag | {field.name: as_json(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple | list):
        return [as_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def from_json(saved: dict[str, Any]) -> TrainConfig:
    """The inverse of `as_json`, also for the configurations that earlier versions saved.

    Raises:
        UserError: for a setting that this version does not have.
        TypeError, ValueError: if it is not what `as_json` makes.
    """
    if not isinstance(saved, dict):
        raise TypeError('"config" is not an object')
    schedule = saved.get("schedule", {})
    if isinstance(schedule, dict) and schedule.get("schedule") == "linear":  # earlier: poly with the exponent 1
        saved = {**saved, "schedule": {**schedule, "schedule": "poly", "poly_power": 1.0}}
    return _from_json(TrainConfig(), saved)


def _from_json(like: Any, saved: dict[str, Any]) -> Any:
    """`saved` as a dataclass of the type of `like`, which has the values of fields that are absent."""
    if "type" in saved:
        if saved["type"] not in TRANSFORMS:
            raise ValueError(f"there is no transform {saved['type']!r}")
        like = TRANSFORMS[saved["type"]]()
    hints, values = get_type_hints(type(like), include_extras=True), {}
    for name, item in saved.items():
        if name == "type" or (name in REMOVED and item in REMOVED[name]):
            continue
        if name not in hints:
            raise UserError(
                f"the saved configuration has {name} = {item}, which this version does not support; resume with the "
                "version it was written by (see config.json)"
            )
        if is_dataclass(getattr(like, name)):
            if not isinstance(item, dict):
                raise TypeError(f"{name} is not an object")
            values[name] = _from_json(getattr(like, name), item)
        else:
            values[name] = value_of(name, item, hints[name])
    return replace(like, **values)


def value_of(name: str, item: Any, hint: Any) -> Any:
    """JSON's value of a field as its type, which must be one that a command line could have given."""
    value = _tuples(item)
    if name in PATHS and isinstance(value, str):
        return Path(value)
    if not conforms(value, hint):
        raise TypeError(f"{name} cannot be {item!r}")
    return value


def _tuples(item: Any) -> Any:
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation: of scalars, Literal, unions and tuples."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return conforms(value, parts[0])
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(parts) and all(map(conforms, value, parts))
    if parts:
        return any(conforms(value, part) for part in parts)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def differences(saved: TrainConfig, config: TrainConfig, may_differ: Collection[Field] = RESUMED) -> list[str]:
    """The settings that differ although they may not, one "OPTION SAVED there, NEW here" each.

    The directory of the data may always differ.

    Args:
        may_differ: `RESUMED` between the processes of a run, `OF_A_HOST` between its hosts.
    """
    there, here = ({option.path: option for option in options_of(_without_places(x))} for x in (saved, config))
    rows = []
    for path in {**there, **here}:
        old, new = (options[path].value if path in options else None for options in (there, here))
        if path not in may_differ and old != new:
            name = "recipe" if path == ("recipe",) else {**there, **here}[path].name
            rows.append(f"{name} {old} there, {new} here")
    return rows


def _without_places(config: TrainConfig) -> TrainConfig:
    data = config.data
    spec = f"{scheme_of(data.data)}:" if is_path(data.data) else data.data
    return replace(config, data=replace(data, data=spec, data_dir=None))
