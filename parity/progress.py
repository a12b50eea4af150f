"""What a long check is at, for whoever shows it; nobody does unless `shown_by` is entered."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

Show = Callable[[str, str], None]
"""(check, step of it): ("gradients, 3 of 4", "layer1.0.conv1.weight, 12 of 62"); no step where the check begins."""

_show: ContextVar[Show | None] = ContextVar("_show", default=None)
_check: ContextVar[str] = ContextVar("_check", default="")


def at_check(name: str) -> None:
    """Tells that this check begins."""
    _check.set(name)
    at_step("")


def at_step(text: str) -> None:
    """Tells which step of the check begins."""
    if (show := _show.get()) is not None:
        show(_check.get(), text)


@contextmanager
def shown_by(show: Show) -> Generator[None]:
    """In this context, `show` is called with the check and its step whenever one begins."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)
