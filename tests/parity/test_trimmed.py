"""Tables without spaces at the ends of their lines."""

import io

from rich.console import Console
from rich.table import Table

from parity.trimmed import Trimmed


def test_lines_have_no_spaces_at_their_ends():
    table = Table("name", "note", box=None, pad_edge=False)
    table.add_row("a", "a longer note")
    table.add_row("b", "")
    shown = []
    for renderable in (table, Trimmed(table)):
        stream = io.StringIO()
        Console(file=stream, width=40).print(renderable)
        shown.append(stream.getvalue())
    full, trimmed = shown
    assert trimmed != full
    assert trimmed == "".join(f"{line.rstrip()}\n" for line in full.splitlines())
