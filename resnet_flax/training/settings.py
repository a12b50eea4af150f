"""The settings of a run as keyword arguments: each option of `python train.py`, with underscores."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from resnet_flax.data.transforms import TRANSFORMS
from resnet_flax.errors import UserError
from resnet_flax.training.config import TrainConfig
from resnet_flax.training.recipes import recipe_named
from resnet_flax.training.saved_config import conforms, value_of

FOR_THE_COMMAND = ("recipe", "evaluate", "split", "real_labels", "synsets", "dry_run", "target", "distributed")


def configured(recipe: str, settings: Mapping[str, Any]) -> TrainConfig:
    """The recipe's configuration with these settings.

    Raises:
        UserError: for a recipe or setting that does not exist, with the nearest, or a value of another type.
    """
    config = recipe_named(recipe).config
    places = dict(_places(config, ()))
    for name, value in settings.items():
        if name not in places:
            near = difflib.get_close_matches(name, places, n=1, cutoff=0.5)
            way_on = f"did you mean {near[0]}?" if near else f"there are {', '.join(places)}"
            raise UserError(f"no setting named {name}; {way_on}")
        path, hint = places[name]
        config = _with(config, path, _checked(name, value, hint))
    return config


def _places(config: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
    """(keyword, (the fields that lead to it, its annotation)) of every setting; a transform is one setting."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, here = getattr(config, field.name), (*path, field.name)
        names = [mark.name for mark in getattr(hints[field.name], "__metadata__", ()) if getattr(mark, "name", None)]
        if is_dataclass(value) and type(value).__name__ not in TRANSFORMS:
            yield from _places(value, here)
        elif field.name not in FOR_THE_COMMAND:
            for name in (names[0] if names else field.name, *_short(hints[field.name])):
                yield name, (here, hints[field.name])


def _short(hint: Any) -> list[str]:
    """The short names of an option that may be a keyword, such as lr; -b may not."""
    aliases = [alias for mark in getattr(hint, "__metadata__", ()) for alias in getattr(mark, "aliases", None) or ()]
    return [alias.removeprefix("--") for alias in aliases if alias.startswith("--")]


def _checked(name: str, value: Any, hint: Any) -> Any:
    if name in ("train_transform", "eval_transform"):
        if type(value).__name__ not in TRANSFORMS:
            raise UserError(f"{name} is one of resnet_flax.data's {', '.join(TRANSFORMS)}; got {value!r}")
        return value
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return value_of(name, list(value) if isinstance(value, tuple | list) else value, hint)
    except TypeError as error:
        way_on = "" if conforms("", hint) else f"; it is {_described(hint)}"
        raise UserError(f"{error}{way_on}") from error


def _described(hint: Any) -> str:
    """An annotation in words: "one of sgd, adam", "int"."""
    hint = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint  # of Annotated
    choices = getattr(hint, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"one of {', '.join(choices)}"
    return getattr(hint, "__name__", str(hint))


def _with(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(config, **{name: _with(getattr(config, name), tuple(rest), value) if rest else value})
