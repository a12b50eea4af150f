"""Options as fields of dataclasses: their names on the command line, and the range of each beside its field."""

from __future__ import annotations

import ast
import inspect
import io
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from parity.errors import UsageError

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4028234663852886e38  # of int32 and float32, which JAX has


@dataclass(frozen=True)
class Range:
    """Annotates a number, an optional number or a tuple of numbers: `epochs: Annotated[int, Range(ge=1)]`.

    NaN, infinity and numbers that neither int32 nor float32 can hold are never in range.

    Attributes:
        ge, gt, le, lt: the value is at least, above, at most, below; None for no limit.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) <= (math.inf if self.le is not None else _largest(value))
            and math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """What a value in this range is: "at least 0 and below 1"."""
        if self.ge is not None and self.le is not None:
            return f"between {self.ge} and {self.le}"
        limits = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        return " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None) or "finite"

    def check(self, name: str, value: Any) -> None:
        """Raises UsageError, which calls the value `name`, unless every number in `value` is in range."""
        wrong = next((number for number in _numbers(value) if number not in self), None)
        if wrong is not None:
            finite = "" if math.isfinite(wrong) or str(self) == "finite" else "finite and "
            largest = _largest(wrong)
            limit = f" and at most {largest:.9g}" if self.le is None and largest < abs(wrong) < math.inf else ""
            raise UsageError(f"{name} must be {finite}{self}{limit}; got {wrong}")


PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]
Pixels = Annotated[int, Range(ge=1, le=2**14)]  # the side of an image
Seed = Annotated[int, Range(ge=0, le=2**32 - 1)]
NonNegative = Annotated[float, Range(ge=0)]
Fraction = Annotated[float, Range(ge=0, le=1)]


def _largest(number: float) -> float:
    return LARGEST_INT if isinstance(number, int) else LARGEST_FLOAT


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def option_group(kind: Any) -> Any:
    """A decorator of a dataclass whose fields are options under their own names, in a group of --help.

    A field's docstring becomes its help, on one line however it was broken, and a default is shown only where there is
    something to show. Required options come first, and a class's own before those that it inherits.
    """
    hints = get_type_hints(kind, include_extras=True)
    docs = {name: text for part in reversed(kind.__mro__) if is_dataclass(part) for name, text in _docs(part)}
    depths = {
        name: depth for depth, part in reversed([*enumerate(kind.__mro__)]) for name in vars(part).get(_ANNOTATIONS, ())
    }
    places = {}
    for field in fields(kind):
        hint, has_default = hints[field.name], _has_default(field)
        is_positional = any(mark is tyro.conf.Positional for mark in _marks(hint))
        places[field.name] = (not is_positional, has_default, 0 if is_positional else depths[field.name])
        if all(getattr(mark, "name", None) != "" for mark in _marks(hint)):  # no group in this one
            own = tyro.conf.arg(
                prefix_name=False,
                help=docs.get(field.name),
                help_behavior_hint=_default_shown if has_default else None,
                metavar=_metavar(hint),
            )
            hints[field.name] = Annotated[hint, own]  # ty: ignore[invalid-type-form]
    kind.__annotations__ = hints
    kind.__dataclass_fields__ = {
        name: kind.__dataclass_fields__[name] for name in sorted(places, key=places.__getitem__)
    }
    return kind


_ANNOTATIONS = "__annotations__"
_METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _marks(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _metavar(hint: Any) -> str | None:
    """That of int for `int | None`, for which tyro has {None}|INT; None where tyro's own, or the field's, is good."""
    parts = get_args(_bare(hint))
    kinds = [_bare(part) for part in parts if part is not NoneType]
    if len(kinds) != 1 or len(parts) != 2 or any(getattr(mark, "metavar", None) for mark in _marks(hint)):
        return None
    items = [_METAVARS.get(_bare(item), "...") for item in get_args(kinds[0])]  # of a tuple
    return _METAVARS.get(kinds[0]) if get_origin(kinds[0]) is not tuple else " ".join(items)


def _bare(hint: Any) -> Any:
    return hint.__origin__ if _marks(hint) else hint


def _default_shown(default: str) -> str:
    return "" if default in ("", "None", "False") else f"(default: {default})"


def _docs(kind: type) -> Iterator[tuple[str, str]]:
    """(field, its docstring on one line) of a class; nothing where its source is not installed."""
    try:
        source = inspect.getsource(kind)
    except OSError:
        return
    (tree,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(tree, ast.ClassDef)
    for field, doc in pairwise(tree.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, " ".join(text.split())


def parse(
    kind: Any,
    arguments: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    config: tuple[Any, ...] = (tyro.conf.FlagCreatePairsOff,),
    **options: Any,
) -> Any:
    """The dataclass `kind` from a command line, by `tyro.cli` with these options; as `check_ranges` raises."""
    if description is None:
        paragraphs = inspect.cleandoc(kind.__doc__).split("\n\n")
        description = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    with wrapped_help():
        parsed = tyro.cli(kind, args=arguments, prog=prog, description=description, config=config, **options)
    check_ranges(parsed)
    return parsed


@contextmanager
def wrapped_help() -> Generator[None]:
    """Around tyro, which breaks the help of the options at the width of the terminal, and not what is above them."""
    shown = _Help()
    try:
        with redirect_stdout(shown):
            yield
    finally:
        width = shutil.get_terminal_size().columns
        for line in shown.getvalue().splitlines():
            text = re.sub(r"\x1b\[[0-9;]*m", "", line)  # without colours
            if len(text) > width and text[0] not in "╭│╰":
                line = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
            if not text or text.strip(" │"):  # no empty lines in the boxes
                print(line.rstrip())


class _Help(io.StringIO):
    """Like stdout, for tyro's choice of colours and boxes."""

    def __init__(self):
        super().__init__()
        self.stdout = sys.stdout

    @property
    def encoding(self) -> str:  # ty: ignore[incompatible-property-override]
        return (getattr(self.stdout, "encoding", None) or "ascii").lower()

    def isatty(self) -> bool:
        return self.stdout is not None and self.stdout.isatty()


@dataclass(frozen=True)
class Option:
    """One field of a tree of dataclasses.

    Attributes:
        path: the names of the fields that lead to it, such as ("data", "train_transform", "crop_size").
        name: as on the command line, such as "--train-transform.crop-size".
        ranges: of its annotation.
    """

    path: tuple[str, ...]
    name: str
    value: Any
    ranges: tuple[Range, ...]


def options_of(config: Any) -> list[Option]:
    """The options that tyro makes of a tree of dataclasses, with their values, in the order of the fields."""
    return list(_walk(config, (), ""))


def _walk(config: Any, path: tuple[str, ...], prefix: str) -> Iterator[Option]:
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, metadata = getattr(config, field.name), getattr(hints[field.name], "__metadata__", ())
        # `tyro.conf.arg(name=...)` renames an option, or with "" drops a group's prefix; `prefix_name=False` drops all.
        renamed = next((mark.name for mark in metadata if getattr(mark, "name", None) is not None), None)
        name = field.name.replace("_", "-") if renamed is None else renamed
        here = (*path, field.name)
        before = "" if any(getattr(mark, "prefix_name", None) is False for mark in metadata) else prefix
        if is_dataclass(value):
            yield from _walk(value, here, f"{before}{name}." if name else before)
        else:
            yield Option(here, f"--{before}{name}", value, tuple(_ranges_in(hints[field.name])))


def _ranges_in(hint: Any) -> Iterator[Range]:
    """Of an annotation and its parts, such as those of `Pixels | None`."""
    yield from (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range))
    for part in get_args(hint):
        yield from _ranges_in(part)


def check_ranges(config: Any) -> None:
    """Raises UsageError, which names the option and its range, for the first field of the tree that is out of range."""
    for option in options_of(config):
        for allowed in option.ranges:
            allowed.check(option.name, option.value)
