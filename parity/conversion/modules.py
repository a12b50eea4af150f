"""What an NNX module holds and calls: the one place that looks inside Flax's modules.

Read from flax 0.12.8: a module keeps its children and variables as plain instance attributes, in order of definition,
and calling one looks `__call__` up on its class, through the metaclass's own `__setattr__`. `tests/parity/conversion/
test_modules.py` fails first where a release changes that.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

from flax import nnx


def children(module: nnx.Module) -> dict[str, nnx.Module]:
    """The submodules that are attributes of `module`, by name, in order of definition."""
    return {name: value for name, value in vars(module).items() if isinstance(value, nnx.Module)}


def variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that are attributes of `module`, by name, without the state of random streams."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
    }


@contextlib.contextmanager
def patched_calls(modules: Iterable[nnx.Module], wrap: Callable[[Callable], Callable]) -> Generator[None]:
    """Replaces `__call__` of the modules' classes by `wrap(__call__)`, and puts each class's own back on leaving.

    Flax's `nnx.capture` does something similar through variables that it adds to the model, which changes the structure
    that a jitted function was given.
    """
    patched: list[tuple[type, Any]] = []
    try:
        for kind in {type(module) for module in modules}:
            if callable(getattr(kind, "__call__", None)):  # noqa: B004  (the function itself is needed)
                patched.append((kind, vars(kind).get("__call__")))
                type.__setattr__(kind, "__call__", wrap(kind.__call__))
        yield
    finally:
        for kind, own in patched:
            if own is None:
                type.__delattr__(kind, "__call__")
            else:
                type.__setattr__(kind, "__call__", own)
