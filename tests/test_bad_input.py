"""Every option of every command, given what is not in its range or none of its choices: one sentence, and status 2.

The cases come from the fields: a number without a range fails here. Files are in test_bad_files.py.
"""

import importlib
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from parity.errors import UsageError
from parity.networks import family_of
from parity.options import options_of
from resnet_flax.training import loop
from resnet_flax.training.recipes import RECIPES

# (command, its module, what it needs besides, the dataclass of its options).
COMMANDS = {
    "predict": ("resnet_flax.commands.predict", ["a.png", "--weights", "absent.pth"], "Arguments"),
    "features": ("resnet_flax.commands.features", ["a.png", "--weights", "absent.pth", "--out", "a.npz"], "Arguments"),
    "export": ("resnet_flax.commands.export", ["--weights", "absent.pth", "--out", "a.pth"], "Arguments"),
    "push": ("resnet_flax.commands.push", ["me/x", "--weights", "absent.pth", "--to", "a"], "Arguments"),
    "data show": ("resnet_flax.commands.data", ["show", "digits"], "Show"),
    "data write": ("resnet_flax.commands.data", ["write", "digits", "name"], "Write"),
    "models": ("resnet_flax.commands.models", [], "Arguments"),
    "convert": ("parity.commands.convert", ["a.pth", "b.pth"], "Arguments"),
    "inspect": ("parity.commands.inspect", ["a.pth"], "Arguments"),
    "check": ("parity.commands.check", ["resnet18"], "Arguments"),
    "record": ("parity.commands.record", ["resnet18", "--out", "a.safetensors"], "Arguments"),
    "diff": ("parity.commands.diff", ["a.pth", "b.pth"], "Arguments"),
}


def numbers_in(hint: Any) -> set[type]:
    """int and float, where they are in an annotation."""
    if hint in (int, float):
        return {hint}
    return set().union(*(numbers_in(part) for part in get_args(hint)))


def has_choices(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(has_choices(part) for part in get_args(hint))


def limited_fields(kind: type) -> list[tuple[str, Any]]:
    """(field, its annotation) of each number and each choice in a dataclass, and in those that are its fields."""
    hints, rows = get_type_hints(kind, include_extras=True), []
    for field in fields(kind):
        hint = hints[field.name]
        inner = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if is_dataclass(inner):
            rows += limited_fields(inner)
        elif numbers_in(hint) or has_choices(hint):
            rows.append((field.name, hint))
    return rows


def ranges_in(hint: Any) -> list:
    here = [mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "check")]
    return here + [found for part in get_args(hint) for found in ranges_in(part)]


def bad_values(hint: Any) -> list[str]:
    if not numbers_in(hint):
        return ["none-of-them", ""]
    (allowed, *_), (kind,) = ranges_in(hint), numbers_in(hint)
    values = ["nan", "inf", "-inf", "x", "", "99999999999999999999999" if kind is int else "1e39"]
    values += ["1.5", "1e9"] if kind is int else []
    for limit, beyond in ((allowed.ge, -1), (allowed.gt, 0), (allowed.le, 1), (allowed.lt, 0)):
        values += [str(kind(limit) + beyond)] if limit is not None else []
    return values


def cases():
    for option in options_of(RECIPES["imagenet_v1"].config):
        owner = RECIPES["imagenet_v1"].config
        for name in option.path[:-1]:
            owner = getattr(owner, name)
        yield from cases_of("train", ["imagenet_v1"], option.name, dict(limited_fields(type(owner))), option.path[-1])
    for command, (module, needed, kind) in COMMANDS.items():
        hints = limited_fields(getattr(importlib.import_module(module), kind))
        if command == "convert":
            hints += limited_fields(family_of("resnet18").Use)
        if command == "check":
            hints += limited_fields(family_of("resnet18").Options)
        for name, hint in hints:
            yield from cases_of(command, needed, f"--{name.replace('_', '-')}", {name: hint}, name)


def cases_of(command, needed, option, hints, name):
    if name not in hints:
        return
    assert has_choices(hints[name]) or ranges_in(hints[name]), f"{command} {option} has no range"
    for bad in bad_values(hints[name]):
        values = {"learning_rate_multipliers": ["fc", bad], "betas": ["0.9", bad]}.get(name, [bad])
        if (command, name) == ("export", "size") or name in ("scale", "ratio"):
            values = [bad, "1"]
        arguments = [f"{option}={bad}"] if values == [bad] else [option, *values]
        yield pytest.param(command, [*needed, *arguments], option, id=f"{command} {option} {bad or 'empty'}")


CASES = list(cases())


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "choose_workdir", lambda config: pytest.fail("the run starts"))
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "arguments", "option"), CASES)
def test_a_value_that_is_none(command, arguments, option, capsys):
    module = COMMANDS[command][0] if command in COMMANDS else "resnet_flax.commands.train"
    with pytest.raises((UsageError, SystemExit)) as stop:
        importlib.import_module(module).main(arguments)
    if isinstance(stop.value, SystemExit):
        assert stop.value.code == 2
        assert option in capsys.readouterr().err
    else:
        assert str(stop.value).startswith(f"{option} must be "), stop.value


def test_there_are_enough_of_them():
    assert len(CASES) >= 250
