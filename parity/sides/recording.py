"""What every submodule took and gave during a forward pass, on either side."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from parity.conversion.modules import patched_calls
from parity.conversion.naming import named_modules
from parity.errors import ParityError
from parity.sides.linen import recording_linen

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]


def flatten_output(output: Any, name: str = "") -> dict[str, Any]:
    """The arrays or tensors in an output, which may be nested tuples, lists and mappings, by dotted name.

    Raises:
        ParityError: if there is anything else in it.
    """
    if output is None:
        return {}
    if isinstance(output, Mapping):
        children = output.items()
    elif isinstance(output, tuple | list):
        children = enumerate(output)
    elif isinstance(output, jax.Array | np.ndarray) or is_tensor(output):
        return {name: output}
    else:
        raise ParityError(f"an output of type {type(output).__name__} is neither an array nor a structure of arrays")
    flat: dict[str, Any] = {}
    for key, child in children:
        flat |= flatten_output(child, f"{name}.{key}" if name else str(key))
    return flat


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor; PyTorch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Recorder:
    """Outputs and positional arguments by module path; a module's second call is `path#2`.

    Attributes:
        inputs: the only argument of a call that has just one.
        arguments: all of them.
    """

    def __init__(self) -> None:
        self.outputs: Record = {}
        self.inputs: Record = {}
        self.arguments: Record = {}
        self._calls: Counter[str] = Counter()

    def add(self, path: str, inputs: tuple, output: Any) -> None:
        self._calls[path] += 1
        key = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        self.arguments[key] = inputs
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
def recording_flax(model: nnx.Module) -> Generator[Recorder]:
    """Records the calls of `model`'s submodules; works on tracers, inside the `jax.jit` that makes them."""
    recorder = Recorder()
    named = list(named_modules(model))
    paths = _first_names(named)
    active: set[int] = set()

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

    with contextlib.ExitStack() as stack:
        stack.enter_context(patched_calls((module for _, module in named), wrap))
        for path, module in named:
            if isinstance(module, nnx.bridge.ToNNX):
                stack.enter_context(recording_linen(recorder.add, path))
        yield recorder


@contextlib.contextmanager
def recording_torch(module: "torch.nn.Module") -> Generator[Recorder]:
    """Records the calls of `module`'s submodules."""
    import torch

    from parity.sides.torch_private import tree_map_only

    recorder = Recorder()
    inputs: dict[str, tuple] = {}

    # Cloned, and the input before the call: an inplace ReLU overwrites what its hooks are given.
    def clone(values: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), values)

    def before(path: str) -> Callable:
        return lambda _module, args: inputs.update({path: clone(args)})

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
