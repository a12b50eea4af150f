"""What every submodule took and gave during a forward pass, on either side."""

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from torch.utils import _pytree

from parity.conversion.naming import named_modules
from parity.errors import ParityError

Record = dict[str, Any]


def flatten_output(output: Any, name: str = "") -> dict[str, Any]:
    """The arrays or tensors in an output, which may be nested tuples, lists and mappings, by dotted name."""
    if output is None:
        return {}
    if isinstance(output, Mapping):
        children = output.items()
    elif isinstance(output, tuple | list):
        children = enumerate(output)
    elif isinstance(output, jax.Array | np.ndarray | torch.Tensor):
        return {name: output}
    else:
        raise ParityError(f"an output of type {type(output).__name__} is neither an array nor a structure of arrays")
    flat: dict[str, Any] = {}
    for key, child in children:
        flat |= flatten_output(child, f"{name}.{key}" if name else str(key))
    return flat


class _Recorder:
    """Outputs (and the input where there is one) by module path; a module's second call is `path#2`."""

    def __init__(self) -> None:
        self.outputs: Record = {}
        self.inputs: Record = {}
        self._calls: Counter[str] = Counter()

    def add(self, path: str, inputs: tuple, output: Any) -> None:
        self._calls[path] += 1
        key = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        if len(inputs) == 1:
            self.inputs[key] = inputs[0]
        if not path:  # the whole network's output is the caller's
            return
        with contextlib.suppress(ParityError):  # a module that returns something else has nothing to compare
            self.outputs.update(flatten_output(output, key))


def _first_names(named: Iterable[tuple[str, Any]]) -> dict[int, str]:
    """{module: path}; of a module with several, the alphabet's first, whatever the order of either framework."""
    names: dict[int, str] = {}
    for path, module in named:
        names[id(module)] = min(path, names.get(id(module), path))
    return names


@contextlib.contextmanager
def recording_flax(model: nnx.Module) -> Generator[_Recorder]:
    """Records the calls of `model`'s submodules; works on tracers, inside the `jax.jit` that makes them.

    The classes get their own `__call__` back on leaving. Flax's `nnx.capture` does a similar thing, through variables
    that it adds to the model, which changes the structure that a jitted function was given.
    """
    recorder = _Recorder()
    paths = _first_names(named_modules(model))
    active: set[int] = set()
    patched: list[tuple[type, Any]] = []

    def wrap(call: Callable) -> Callable:
        def wrapper(self, *args, **kwargs):
            if id(self) not in paths or id(self) in active:  # `super().__call__` is the same call
                return call(self, *args, **kwargs)
            active.add(id(self))
            try:
                output = call(self, *args, **kwargs)
            finally:
                active.remove(id(self))
            recorder.add(paths[id(self)], args, output)
            return output

        return wrapper

    try:
        for kind in {type(module) for _, module in named_modules(model)}:
            if callable(getattr(kind, "__call__", None)):  # noqa: B004  (the function itself is wanted)
                patched.append((kind, vars(kind).get("__call__")))
                type.__setattr__(kind, "__call__", wrap(kind.__call__))
        yield recorder
    finally:
        for kind, own in patched:
            if own is None:
                type.__delattr__(kind, "__call__")
            else:
                type.__setattr__(kind, "__call__", own)


@contextlib.contextmanager
def recording_torch(module: torch.nn.Module) -> Generator[_Recorder]:
    """Records the calls of `module`'s submodules."""
    recorder = _Recorder()
    inputs: dict[str, tuple] = {}

    # Cloned, and the input before the call: an inplace ReLU overwrites what its hooks are given.
    def clone(values: Any) -> Any:
        return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), values)

    def before(path: str) -> Callable:
        return lambda _module, args: inputs.update({path: clone(args) if len(args) == 1 else ()})

    def after(path: str) -> Callable:
        return lambda _module, _args, output: recorder.add(path, inputs.pop(path), clone(output))

    handles = []
    paths = _first_names(module.named_modules(remove_duplicate=False))
    for child in module.modules():
        path = paths[id(child)]
        handles += [child.register_forward_pre_hook(before(path)), child.register_forward_hook(after(path))]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
