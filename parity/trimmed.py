"""Tables without the spaces with which rich fills their lines: these would be copied, and wrap in a narrow terminal."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment


@dataclass(frozen=True)
class Trimmed:
    """What `rich` prints for `renderable`, without spaces at the ends of lines."""

    renderable: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.renderable, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                text, style, control = line.pop()
                yield from (*line, Segment(text.rstrip(), style, control))
            yield Segment.line()
