"""The families of networks that distributions have registered, by the entry-point group `parity.networks`."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from parity.errors import UsageError

GROUP = "parity.networks"


class Registered(NamedTuple):
    families: dict[str, Any]
    failures: list[str]


@cache
def registered() -> Registered:
    """Every `parity.networks.Family` by the name of its entry point, in alphabetical order, and why others failed."""
    families, failures = {}, []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            families[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            failures.append(f"the networks of {point.name!r} ({point.value}) cannot be loaded: {error}")
    return Registered(families, failures)


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which registered network has a state_dict of these shapes, in a few words; None if none has."""
    for family in registered().families.values():
        with suppress(UsageError):
            return family.identify(shapes)
    return None
