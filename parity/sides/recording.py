"""What every submodule took and gave during a forward pass, on either side."""

import contextlib
import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from flax.nnx.tracers import TraceState

from parity.conversion.modules import patched_calls
from parity.conversion.naming import named_modules
from parity.errors import ParityError
from parity.sides.linen import recording_linen

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]


def flatten_output(output: Any, name: str = "") -> dict[str, Any]:
    """The arrays or tensors in an output by dotted name: of nested tuples, lists, mappings and dataclasses.

    A named tuple's parts go by their numbers, as any tuple's.

    Raises:
        ParityError: if there is anything else in it.
    """
    if output is None:
        return {}
    if isinstance(output, jax.Array | np.ndarray) or is_tensor(output):
        return {name: output}
    if isinstance(output, bool | int | float | complex | np.generic):
        return {name: np.asarray(output)}
    flat: dict[str, Any] = {}
    for key, child in _children(output).items():
        flat |= flatten_output(child, f"{name}.{key}" if name else str(key))
    return flat


def _children(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    raise ParityError(
        f"an output of type {type(output).__name__} is neither an array nor a structure of arrays: return a tuple, a "
        "dict or a dataclass of arrays"
    )


def map_output(function: Callable[[Any, str], Any], output: Any, name: str = "") -> Any:
    """A copy of an output, built alike, with `function` of each of its arrays or tensors and its dotted name."""
    if isinstance(output, jax.Array | np.ndarray) or is_tensor(output):
        return function(output, name)
    try:
        children = _children(output)
    except ParityError:
        return output
    mapped = {
        key: map_output(function, child, f"{name}.{key}" if name else str(key)) for key, child in children.items()
    }
    if isinstance(output, tuple | list):
        return type(output)(*mapped.values()) if hasattr(output, "_fields") else type(output)(mapped.values())
    changed: Any = copy.copy(output)
    for key, child in mapped.items():
        if isinstance(output, Mapping):
            changed[key] = child
        else:
            object.__setattr__(changed, key, child)  # a dataclass may be frozen
    return changed


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

    def add(self, path: str, inputs: tuple, output: Any) -> str:
        """Keeps what a call took and gave, and returns the name it is kept under."""
        self._calls[path] += 1
        key = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        self.arguments[key] = inputs
        if len(inputs) == 1:
            self.inputs[key] = inputs[0]
        if path:  # the whole network's output is the caller's
            with contextlib.suppress(ParityError):  # a module that returns something else has nothing to compare
                self.outputs.update(flatten_output(output, key))
        return key


def _first_names(named: Iterable[tuple[str, Any]]) -> dict[int, str]:
    """{module: path}; of a module with several, the alphabet's first, whatever the order of either framework."""
    names: dict[int, str] = {}
    for path, module in named:
        names[id(module)] = min(path, names.get(id(module), path))
    return names


@contextlib.contextmanager
def recording_flax(
    model: nnx.Module, rename: Callable[[str], str] = str, added: Mapping[str, jax.Array] | None = None
) -> Generator[Recorder]:
    """Records the calls of `model`'s submodules; works on tracers, inside the `jax.jit` that makes them.

    A call inside a transformation of its own (`jax.jit`, `jax.checkpoint`, a scan) is not recorded: its values do not
    exist outside.

    Args:
        rename: from a module's path to the one it is recorded under.
        added: what is added to the outputs recorded under these names: zeros, whose gradient is the output's.
    """
    recorder = Recorder()
    named = list(named_modules(model))
    paths = _first_names((rename(path), module) for path, module in named)
    active: set[int] = set()
    trace = TraceState()  # read from flax 0.12.8, which does not export it

    def seen(path: str, args: tuple, output: Any) -> Any:
        if not trace.is_valid():
            return output
        key = recorder.add(path, args, output)
        if not added:
            return output
        return map_output(lambda array, name: array + added[name] if name in added else array, output, key)

    def wrap(call: Callable) -> Callable:
        def wrapper(self, *args, **kwargs):
            if id(self) not in paths or id(self) in active:  # `super().__call__` is the same call
                return call(self, *args, **kwargs)
            active.add(id(self))
            try:
                output = call(self, *args, **kwargs)
            finally:
                active.remove(id(self))
            return seen(paths[id(self)], args, output)

        return wrapper

    with contextlib.ExitStack() as stack:
        stack.enter_context(patched_calls((module for _, module in named), wrap))
        for path, module in named:
            if isinstance(module, nnx.bridge.ToNNX):
                stack.enter_context(recording_linen(lambda inner, *call: seen(rename(inner), *call), path))
        yield recorder


@contextlib.contextmanager
def recording_torch(
    module: "torch.nn.Module", gradients: "dict[str, torch.Tensor] | None" = None, *, outputs_only: bool = False
) -> Generator[Recorder]:
    """Records the calls of `module`'s submodules.

    Args:
        outputs_only: whether what they took is not recorded, which costs as much memory as what they gave.
        gradients: where a backward pass leaves the gradient of every recorded output that has one.
    """
    import torch

    from parity.sides.torch_private import tree_map_only

    recorder = Recorder()
    inputs: dict[str, tuple] = {}

    # Cloned, and the input before the call: an inplace ReLU overwrites what its hooks are given.
    def clone(values: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), values)

    def copied(tensor: Any, _name: str) -> Any:
        return tensor.detach().clone() if is_tensor(tensor) else tensor

    def before(path: str) -> Callable:
        return lambda _module, args: inputs.update({path: clone(args)})

    def after(path: str) -> Callable:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            key = recorder.add(path, inputs.pop(path, ()), map_output(copied, output))
            return output if gradients is None or not path else _watched(output, key, gradients)

        return hook

    handles = []
    paths = _first_names(module.named_modules(remove_duplicate=False))
    for child in module.modules():
        path = paths[id(child)]
        handles.append(child.register_forward_hook(after(path)))
        if not outputs_only:
            handles.append(child.register_forward_pre_hook(before(path)))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _watched(output: Any, name: str, gradients: "dict[str, torch.Tensor]") -> Any:
    """The output, as a tensor of its own for each module that gives it on, whose gradient is kept."""

    def watch(tensor: Any, path: str) -> Any:
        if not is_tensor(tensor) or not tensor.requires_grad:
            return tensor
        own = tensor.clone()  # a hook stays with this version, whatever is done to it in place
        gradients[path] = own.new_zeros(own.shape)
        own.register_hook(lambda gradient: gradients.update({path: gradient.detach().clone()}))
        return own

    return map_output(watch, output, name)
