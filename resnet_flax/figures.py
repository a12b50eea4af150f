"""Figures whose text comes from outside: never taken for mathematics, in a font that has its characters.

A figure is never worth a result: `drawn` turns its failure into a note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.errors import UsageError, needs_extra, printable

LONGEST = 40  # characters of a name that are shown
BOXES = ("Last Resort High-Efficiency",)  # a font with a picture of its Unicode block for every character


def new_figure(size: tuple[float, float], **options: Any):
    """A matplotlib figure of `size` in inches, without global state, whatever the machine's default backend is."""
    with needs_extra("train", "drawing a figure"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Names:
    """Names as a figure can show them.

    Attributes:
        texts: the names, cut to `LONGEST` characters, or their numbers where no font has their characters.
        style: the properties of a `matplotlib.text.Text` that shows them.
        note: why they are numbers.
    """

    texts: list[str]
    style: dict[str, Any]
    note: str | None


def line(name: str) -> str:
    """A name as one line of at most `LONGEST` characters."""
    text = " ".join(printable(name).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def shown(names: Sequence[str]) -> Names:
    """The names, with a font that has their characters if one is installed."""
    texts = [line(name) for name in names]
    families = _families(set("".join(texts)))
    if families is None:
        note = "no installed font has all characters of the class names; the figure shows their numbers instead"
        return Names([str(number) for number in range(len(names))], {"parse_math": False}, note)
    return Names(texts, {"parse_math": False, "fontfamily": families}, None)


def _families(characters: set[str]) -> list[str] | None:
    """Fonts that have the characters between them, matplotlib's own first; None if not all are found."""
    from matplotlib import font_manager, ft2font

    own = font_manager.findfont("DejaVu Sans")
    missing = {ord(character) for character in characters} - set(ft2font.FT2Font(own).get_charmap())
    families = ["DejaVu Sans"]
    entries = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist if entry.name not in BOXES}
    for path, name in sorted(entries.items()):
        if not missing:
            break
        try:
            font = ft2font.FT2Font(path)
            found = missing & set(font.get_charmap()) if font.scalable else set()  # colour emoji cannot be drawn
        except (OSError, RuntimeError):  # matplotlib's list of fonts may be older than the disk
            continue
        if found:
            families.append(name)
            missing -= found
    return None if missing else families


def drawn(path: Path, draw: Callable[[], str | None]) -> tuple[bool, str | None]:
    """Calls `draw`, which writes a figure to `path`: (whether it did, its note or why not)."""
    try:
        return True, draw()
    except UsageError:  # matplotlib is not installed, which has its own sentence
        raise
    except Exception as error:  # of matplotlib, a font or the disk
        reason = " ".join(str(error).split()) or type(error).__name__
        return False, f"{path} could not be drawn ({reason}); nothing else depends on it"


def save(figure: Any, path: Path, **options: Any) -> None:
    """Writes a PNG to a temporary name first, so that the file is complete whenever it is opened."""
    temporary = path.with_suffix(".tmp.png")
    try:
        figure.savefig(temporary, **options)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
