"""A run's configuration as JSON and back, and where two of them differ."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from resnet_flax.data.specs import is_path, scheme_of
from resnet_flax.data.transforms import TRANSFORMS
from resnet_flax.errors import UserError
from resnet_flax.options import options_of
from resnet_flax.training.config import TrainConfig

PATHS = ("workdir", "data_dir", "classes")  # the fields that are paths; JSON has strings

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
    """
    schedule = saved.get("schedule", {})
    if schedule.get("schedule") == "linear":  # in earlier versions: poly with the exponent 1
        saved = {**saved, "schedule": {**schedule, "schedule": "poly", "poly_power": 1.0}}
    return _from_json(TrainConfig(), saved)


def _from_json(like: Any, value: Any) -> Any:
    """`value` as a dataclass of the type of `like`, or as it is where `like` is no dataclass."""
    if isinstance(value, list):
        return tuple(_from_json(None, item) for item in value)
    if not isinstance(value, dict):
        return value
    if "type" in value:
        like = TRANSFORMS[value["type"]]()
    values = {}
    for name, item in value.items():
        if name == "type" or (name in REMOVED and item in REMOVED[name]):
            continue
        if not hasattr(like, name):
            raise UserError(
                f"the saved configuration has {name} = {item}, which this version does not support; resume with the "
                "version it was written by (see config.json)"
            )
        values[name] = _from_json(getattr(like, name), item)
    return replace(like, **{name: Path(x) if name in PATHS and x is not None else x for name, x in values.items()})


def differences(saved: TrainConfig, config: TrainConfig) -> list[str]:
    """The settings that a resumed run may not change and that differ, one "OPTION SAVED there, NEW here" each.

    The settings of `RunConfig` may change, and so may the directory of the data.
    """
    there, here = ({option.path: option for option in options_of(_without_places(x))} for x in (saved, config))
    rows = []
    for path in {**there, **here}:
        old, new = (options[path].value if path in options else None for options in (there, here))
        if path[0] != "run" and old != new:
            name = "recipe" if path == ("recipe",) else {**there, **here}[path].name
            rows.append(f"{name} {old} there, {new} here")
    return rows


def _without_places(config: TrainConfig) -> TrainConfig:
    data = config.data
    spec = f"{scheme_of(data.data)}:" if is_path(data.data) else data.data
    return replace(config, data=replace(data, data=spec, data_dir=None))
