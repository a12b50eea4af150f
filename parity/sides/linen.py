"""How a network in JAX is called and given its mode, and how a Linen one inside an NNX module is recorded."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from flax import linen, nnx

from parity.conversion.trees import Tree
from parity.sides.arguments import arguments_of, mode_arguments


def modes_of(model: nnx.Module, inputs: Any) -> dict[str, bool]:
    """{name: value in train mode} of the switches by which the network's call takes its mode.

    Linen's `deterministic` is not among them: it is for dropout, which stays off.
    """
    if isinstance(model, Tree):
        return mode_arguments(partial(model.function, None), inputs) if model.function else {}
    if isinstance(model, nnx.bridge.ToNNX):
        network = model.to_nnx__module
        modes = mode_arguments(partial(type(network).__call__, network), inputs)
        return {name: value for name, value in modes.items() if name != "deterministic"}
    return mode_arguments(partial(type(model).__call__, model), inputs)


def called(model: nnx.Module, inputs: Any, *, train: bool) -> Any:
    """The model's output in that mode; Linen's new statistics are taken over, and its dropout is off."""
    positional, named = arguments_of(inputs)
    options: dict[str, Any] = {name: value == train for name, value in modes_of(model, inputs).items()}
    if isinstance(model, nnx.bridge.ToNNX):
        network = model.to_nnx__module
        if "deterministic" in mode_arguments(partial(type(network).__call__, network), inputs):
            options["deterministic"] = True
        options["mutable"] = ["batch_stats"] if train else False
    with linen.intercept_methods(_without_dropout):
        return model(*positional, **named, **options)


def _without_dropout(function: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
    """Linen's Dropout gives its inputs, also where a switch such as `train=` has turned it on."""
    if isinstance(context.module, linen.Dropout) and context.method_name == "__call__":
        return args[0] if args else kwargs["inputs"]
    return function(*args, **kwargs)


@contextmanager
def recording_linen(seen: Callable[[str, tuple, Any], Any], prefix: str = "") -> Generator[None]:
    """Calls `seen(path, arguments, output)` after every call of a Linen submodule, by its path after `prefix`.

    What it returns takes the output's place.
    """

    def intercept(function: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        output = function(*args, **kwargs)
        path = ".".join(context.module.path)
        if context.method_name == "__call__" and path:
            return seen(".".join(filter(None, (prefix, path))), args, output)
        return output

    with linen.intercept_methods(intercept):
        yield
