"""Text from outside (names of files and classes, metadata) on its way to a terminal or into JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.text import Text

from parity.errors import printable


class PlainConsole(Console):
    """A rich console for text from outside: no markup, no emoji codes, no highlighting, control characters escaped."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed passes here, whether alone or in a cell of a table."""
        return super().render_str(printable(text), **options)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as its standard has it: null for NaN and infinity, which `json.dumps` writes as they are."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """What JSON can hold, with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
