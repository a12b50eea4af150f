"""The candidate's pass in which every submodule is handed the reference's tensors: no error reaches the next layer.

What still differs arose in one place: an output, inside that submodule; an input, in the function between the
submodules before it and it. So every independent cause shows at once.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from parity.checks.pair import Pair
from parity.conversion.modules import patched_calls
from parity.conversion.naming import named_modules
from parity.diagnosis.wide import is_narrowed, widened
from parity.errors import ParityError
from parity.sides.base import OUTPUT
from parity.sides.flax import FlaxSide
from parity.sides.linen import called
from parity.sides.recording import Record, flatten_output, map_output

Event = tuple[str, str]
"""("input", "layer1.0.conv1") or ("output", "layer1.0.conv1"); the network's output is ("output", "")."""
Tensors = dict[Event, dict[str, np.ndarray]]


class Forced:
    """The candidate as a function that takes the reference's tensors on the way; compiled once."""

    def __init__(self, pair: Pair, arguments: Record, outputs: Record, *, train: bool):
        """`arguments` and `outputs` are those of the reference's submodules, as numpy arrays by path."""
        if not isinstance(pair.candidate, FlaxSide):
            raise ParityError("only a Flax network is taken apart")
        self._side, self._inputs = pair.candidate, pair.candidate.array(pair.inputs.candidate)
        self._arguments, self._outputs = arguments, outputs
        self._train, self._channels = train, pair.oracle.channels
        self._graphdef, self._state = nnx.split(self._side.model(train=train))
        self.replaced: set[Event] = set()
        self._compiled = jax.jit(self._pass)
        self.keys: list[str] = []
        self.narrowed: list[str] = []

    def run(self, released: Collection[Event] = ()) -> Tensors:
        """Every tensor as the candidate computed it; those in `released` go on to the next layer as they are."""
        if not self.keys:
            jax.eval_shape(self._pass, self._state, {})
            self.keys = sorted({f"{kind} {path}" for kind, path in self.replaced})
        return _by_event(self._compiled(self._state, self._flags(released)))

    def run_wide(self, released: Collection[Event] = ()) -> Tensors:
        """The same with every narrower type on the way replaced by float64, which `narrowed` then lists.

        {} where that is impossible.
        """
        arguments = (self._state, self._flags(released))
        closed, shapes = jax.make_jaxpr(self._pass, return_shape=True)(*arguments)
        if not is_narrowed(closed):
            return {}
        try:
            outputs, self.narrowed = widened(closed, *jax.tree.leaves(arguments))
        except (NotImplementedError, TypeError, ValueError):  # a loop, or an operation of one type only
            return {}
        return _by_event(jax.tree.unflatten(jax.tree.structure(shapes), outputs)) if self.narrowed else {}

    def _flags(self, released: Collection[Event]) -> dict[str, bool]:
        return {key: _event(key) not in released for key in self.keys}

    def _pass(self, state: Any, flags: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        model = nnx.merge(self._graphdef, state, copy=True)
        paths: dict[int, str] = {}
        for path, module in named_modules(model):
            paths[id(module)] = min(path, paths.get(id(module), path))
        calls: Counter[str] = Counter()
        active: set[int] = set()
        seen: dict[str, dict[str, jax.Array]] = {}

        def forced(event: Event, name: str, own: Any, theirs: np.ndarray | None) -> Any:
            if not isinstance(own, jax.Array):
                return own
            seen.setdefault(" ".join(event), {})[name] = own
            theirs = _in_layout_of(theirs, own.shape, self._channels)
            if theirs is None:
                return own
            self.replaced.add(event)
            flag = flags.get(" ".join(event), True)
            return jnp.where(flag, jnp.asarray(theirs, own.dtype), own)

        def handed(path: str, call: Callable, args: tuple) -> Any:
            path = self._side.torch_path(path)
            calls[path] += 1
            key = path if calls[path] == 1 else f"{path}#{calls[path]}"
            given = self._arguments.get(key, ())
            if len(given) == len(args):
                pairs = enumerate(zip(args, given, strict=True))
                args = tuple(forced(("input", key), str(i), own, theirs) for i, (own, theirs) in pairs)
            return map_output(
                lambda own, name: forced(("output", key), name, own, self._outputs.get(name)), call(*args), key
            )

        def wrap(call: Callable) -> Callable:
            def wrapper(module, *args, **kwargs):
                path = paths.get(id(module))
                if not path or id(module) in active:
                    return call(module, *args, **kwargs)
                active.add(id(module))
                try:
                    return handed(path, lambda *given: call(module, *given, **kwargs), args)
                finally:
                    active.remove(id(module))

            return wrapper

        def intercept(function: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
            path = ".".join(context.module.path)
            if context.method_name != "__call__" or not path:
                return function(*args, **kwargs)
            return handed(path, lambda *given: function(*given, **kwargs), args)

        with patched_calls((module for _, module in named_modules(model)), wrap), linen.intercept_methods(intercept):
            outputs = called(model, self._inputs, train=self._train)
        seen["output "] = flatten_output(outputs, OUTPUT)
        return seen


def _event(key: str) -> Event:
    kind, _, path = key.partition(" ")
    return kind, path


def _by_event(result: Mapping[str, Mapping[str, jax.Array]]) -> Tensors:
    return {_event(key): {name: np.asarray(array) for name, array in arrays.items()} for key, arrays in result.items()}


def _in_layout_of(array: np.ndarray | None, shape: tuple[int, ...], channels: int) -> np.ndarray | None:
    """The reference's array, whose channels are on that axis, in the candidate's layout; None if it fits in none."""
    if array is None:
        return None
    moved = np.moveaxis(array, channels, -1) if array.ndim >= 3 else array
    if moved.shape == shape and (array.ndim >= 4 or array.shape != shape):
        return moved
    return array if array.shape == shape else None
