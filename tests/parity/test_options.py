"""The command line's own help: what is printed above the options, in which order they come, how long lines are."""

import contextlib
from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

import parity.__main__
import resnet_flax.__main__
from parity.options import Pixels, option_group, parse

PROGRAMS = {"parity": parity.__main__, "resnet_flax": resnet_flax.__main__}
COMMANDS = [(name, command) for name, program in PROGRAMS.items() for command in ("", *program.COMMANDS)]
COMMANDS += [("resnet_flax", "data show"), ("resnet_flax", "data write"), ("resnet_flax", "train finetune")]


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_fits_the_terminal_and_shows_no_empty_default(program, command, columns, monkeypatch, capsys):
    pytest.importorskip("torch", reason="compares with PyTorch")
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        PROGRAMS[program].main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m {program}")
    assert not [line for line in lines if len(line) > columns or line.endswith(" ")]
    assert not [
        line for line in lines if "(default: )" in line or "(default: False)" in line or "(default: None)" in line
    ]


@dataclass(frozen=True, kw_only=True)
class Base:
    inherited: int | None = None
    """Of the base."""
    image: tyro.conf.Positional[str]


@option_group
@dataclass(frozen=True, kw_only=True)
class Own(Base):
    """One sentence that is as long as a sentence may be before it
    (which it does here) reaches the end of the terminal.

    Another paragraph.
    """

    optional: float = 1.0
    size: Pixels | None = None
    required: str
    pair: tuple[int, int] | None = None
    values: Annotated[tuple[float, ...] | None, "a mark"] = None


def help_of(kind, capsys) -> str:
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], prog="prog")
    return capsys.readouterr().out


def test_required_options_come_first_and_inherited_ones_last(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(Own, capsys)
    options = [line.split()[1] for line in shown.splitlines() if line.startswith("│ --")]
    assert options == ["--required", "--optional", "--size", "--pair", "--values", "--inherited"]
    assert parse(Own, ["x.png", "--required", "a"], prog="prog") == Own(image="x.png", required="a")


def test_help_names_what_an_optional_value_is(capsys):
    shown = help_of(Own, capsys)
    for option in ("--size INT", "--pair INT INT", "--values FLOAT ...", "--inherited INT"):
        assert f"│ {option} " in shown


def test_the_description_keeps_its_paragraphs_and_breaks_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    above = help_of(Own, capsys).partition("╭")[0]
    assert above.endswith(
        "\n\nOne sentence that is as long as a sentence may be before it (which it does here)\n"
        "reaches the end of the terminal.\n\nAnother paragraph.\n\n"
    )
