"""Dropout and stochastic depth, which are off in every pass: two frameworks cannot draw the same mask."""

import re
from collections.abc import Iterable
from typing import Any

_NAME = re.compile(r"drop|stochastic_?depth", re.IGNORECASE)
_RATES = ("p", "rate", "prob")
"""What a class called dropout calls its rate; anywhere else the attribute itself has the word in its name."""


def rates(module: Any) -> dict[str, float]:
    """The rates among a module's own attributes, of either framework, by the attribute's name."""
    is_dropout = bool(_NAME.search(type(module).__name__))
    return {
        name: float(value)
        for name, value in vars(module).items()
        if isinstance(value, float | int)
        and not isinstance(value, bool)
        and 0 <= value <= 1
        and (_NAME.search(name) or (is_dropout and name in _RATES))
    }


def turn_off(modules: Iterable[Any]) -> None:
    """Sets every rate to zero, which holds whatever mode a call asks for."""
    for module in modules:
        for name, rate in rates(module).items():
            if rate:
                setattr(module, name, 0.0)
