"""The reference's forward pass as a list of calls of PyTorch's functions, which can be repeated with some altered."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from parity.diagnosis.forced import Event, Tensors
from parity.errors import ParityError
from parity.sides.base import OUTPUT
from parity.sides.recording import flatten_output
from parity.sides.torch_private import tree_leaves, without_functions


@dataclass
class Call:
    """One call of a function, such as `torch.nn.functional.gelu`.

    Attributes:
        name: the function's, without underscores: "gelu", "add" for `+`, `add_` and `torch.add`.
        sources: the calls that made its arguments; a submodule's forced input or output is nobody's.
    """

    index: int
    name: str
    function: Callable
    args: tuple
    kwargs: dict[str, Any]
    output: Any = None
    sources: list[int] = field(default_factory=list)

    def again(self, **kwargs: Any) -> Any:
        """What it gives with some keyword arguments changed."""
        return self.function(*self.args, **{**self.kwargs, **kwargs})


Replacement = Callable[[Call, list[Call]], Any]
"""(the call, all calls before it) -> what to give in its place."""


class _Reached(Exception):
    """The tensor that was asked for has been computed."""


class _Calls(TorchFunctionMode):
    def __init__(self, changes: Mapping[int, Replacement], origin: dict[int, int] | None):
        super().__init__()
        self.calls: list[Call] = []
        self.changes, self.origin = changes, origin

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        call = Call(len(self.calls), name, func, tuple(args), dict(kwargs))
        self.calls.append(call)
        if self.origin is not None:
            tensors = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, torch.Tensor)]
            call.sources = sorted({self.origin[id(tensor)] for tensor in tensors if id(tensor) in self.origin})
        spelling = getattr(func, "__name__", "")
        in_place = spelling.startswith("__i") or (spelling[-1:] == "_" and spelling[:1] != "_") or kwargs.get("inplace")
        original = args[0].clone() if in_place and args and isinstance(args[0], torch.Tensor) else None
        change = self.changes.get(call.index)
        call.output = call.again() if change is None else change(call, self.calls)
        if original is not None:  # what it was called with has been overwritten
            call.args = (original, *args[1:])
        if self.origin is not None:
            for leaf in tree_leaves(call.output):
                if isinstance(leaf, torch.Tensor):
                    self.origin[id(leaf)] = call.index
        return call.output


class Program:
    """A pass of a PyTorch network in float64.

    Attributes:
        calls: in order.
        tensors: {event: {name: array}}, the submodules' inputs and outputs in order of time.
    """

    def __init__(self, run: Callable[[], Any], module: torch.nn.Module, boundaries: Collection[Event] | None = None):
        """`run` calls `module`; at `boundaries` (by default everywhere) tensors count as given."""
        self._run, self._module = run, module
        self._boundaries = boundaries
        self.tensors: Tensors = {}
        self.arguments: dict[str, tuple] = {}
        self._sources: dict[Event, list[int]] = {}
        origin: dict[int, int] = {}
        with torch.no_grad(), _Calls({}, origin) as mode, self._observed(origin, mode.calls):
            outputs = run()
        self._note(("output", ""), flatten_output(outputs, OUTPUT), origin)
        self.calls = mode.calls

    def until(self, event: Event, name: str, changes: Mapping[int, Replacement]) -> np.ndarray | None:
        """That tensor in a pass with some calls replaced; None if such a pass is impossible."""
        reached: list[torch.Tensor] = []
        try:
            with torch.no_grad(), _Calls(changes, None), self._stopping(event, name, reached):
                outputs = self._run()
            if event == ("output", ""):
                reached.append(flatten_output(outputs, OUTPUT)[name])
        except _Reached:
            pass
        except Exception:  # an altered call may fit no longer
            return None
        return _numpy(reached[0]) if reached else None

    def segment(self, event: Event) -> list[Call]:
        """The calls that made this tensor out of given ones, in order."""
        found: set[int] = set()
        waiting = list(self._sources.get(event, []))
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += self.calls[index].sources
        return [self.calls[index] for index in sorted(found)]

    def _note(self, event: Event, values: Mapping[str, Any], origin: Mapping[int, int]) -> None:
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        if tensors:
            self.tensors[event] = {name: _numpy(value) for name, value in tensors.items()}
            self._sources[event] = sorted({origin[id(value)] for value in tensors.values() if id(value) in origin})

    @contextlib.contextmanager
    def _observed(self, origin: dict[int, int], calls: list[Call]) -> Generator[None]:
        started: list[tuple[str, dict[int, int]]] = []
        kept: list[Any] = []  # so that no other tensor gets their ids

        def is_boundary(event: Event) -> bool:
            return self._boundaries is None or event in self._boundaries

        def before(key: str, args: tuple) -> None:
            kept.append(args)
            event = ("input", key)
            self._note(event, {str(index): value for index, value in enumerate(args)}, origin)
            self.arguments[key] = tuple(_numpy(value) if isinstance(value, torch.Tensor) else None for value in args)
            saved = {}
            if is_boundary(event):
                saved = {id(value): origin.pop(id(value)) for value in args if id(value) in origin}
            started.append((key, saved))

        def after(output: Any) -> None:
            kept.append(output)
            key, saved = started.pop()
            origin.update({tensor: call for tensor, call in saved.items() if tensor not in origin})
            try:
                values = flatten_output(output, key)
            except ParityError:
                return
            self._note(("output", key), values, origin)
            if is_boundary(("output", key)):
                for value in values.values():
                    origin.pop(id(value), None)

        with hooked(self._module, before, lambda _key, output: after(output)):
            yield

    @contextlib.contextmanager
    def _stopping(self, event: Event, name: str, reached: list[torch.Tensor]) -> Generator[None]:
        kind, wanted = event

        def before(key: str, args: tuple) -> None:
            if kind == "input" and key == wanted:
                reached.append(args[int(name)])
                raise _Reached

        def after(key: str, output: Any) -> None:
            if kind == "output" and key == wanted:
                reached.append(flatten_output(output, key)[name])
                raise _Reached

        with hooked(self._module, before, after):
            yield


@contextlib.contextmanager
def hooked(
    module: torch.nn.Module, before: Callable[[str, tuple], tuple | None], after: Callable[[str, Any], Any]
) -> Generator[None]:
    """Calls `before(key, args)` and `after(key, output)` around every submodule's call; keys are as in recordings.

    What they return, if not None, takes the place of the arguments and of the output.
    """
    paths: dict[int, str] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        paths[id(child)] = min(path, paths.get(id(child), path))
    counts: Counter[str] = Counter()
    keys: list[str] = []

    def pre(child: torch.nn.Module, args: tuple) -> tuple | None:
        path = paths[id(child)]
        counts[path] += 1
        keys.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
        return before(keys[-1], args)

    handles = []
    for child in module.modules():
        if child is not module:
            handles.append(child.register_forward_pre_hook(pre))
            handles.append(child.register_forward_hook(lambda _child, _args, output: after(keys.pop(), output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    with without_functions():
        return tensor.detach().cpu().numpy().copy() if tensor.dtype != torch.bfloat16 else tensor.float().numpy()
