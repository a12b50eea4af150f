"""What an NNX module holds and calls: the one place that looks inside Flax's modules.

Read from flax 0.12.8: a module keeps its children and variables as plain instance attributes, in order of definition,
and calling one looks `__call__` up on its class, through the metaclass's own `__setattr__`. `tests/parity/conversion/
test_modules.py` fails first where a release changes that.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

from flax import nnx


def children(module: nnx.Module) -> dict[str, nnx.Module]:
    """The submodules that `module` holds, in attributes or in containers there, by dotted name, in order of definition.

    A container is a list, a tuple, a mapping or an `nnx.Pytree` that is no module, marked by `nnx.data` or not.
    """
    return dict(_held(vars(module), nnx.Module))


def variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that `module` holds itself, as `children` finds modules, without the state of random streams."""
    found = _held(vars(module), nnx.Variable)
    return {name: value for name, value in found if not isinstance(value, nnx.RngState)}


def all_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable that Flax itself finds in the model, by dotted path, without the state of random streams."""
    return {
        ".".join(map(str, path)): value
        for path, value in nnx.iter_graph(model)
        if isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState)
    }


def _held(value: Any, kind: type, path: str = "") -> Iterator[tuple[str, Any]]:
    if path and isinstance(value, kind):
        yield path, value
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, nnx.Pytree) and not isinstance(value, nnx.Module | nnx.Variable):
        items = vars(value).items()
    else:
        return
    for key, item in items:
        if not str(key).startswith("_pytree__"):  # Flax's own bookkeeping
            yield from _held(item, kind, f"{path}.{key}" if path else str(key))


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
