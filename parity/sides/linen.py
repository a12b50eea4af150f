"""How a Linen network inside an NNX one is called and recorded."""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from flax import linen, nnx

# What people call the argument that chooses the mode; the value in train mode.
_MODE_ARGUMENTS = {"train": True, "training": True, "is_training": True, "use_running_average": False}


def called(model: nnx.Module, inputs: Any, *, train: bool) -> Any:
    """The model's output; one that is Linen's is given the mode, its new statistics taken over, its dropout off."""
    if not isinstance(model, nnx.bridge.ToNNX):
        return model(inputs)
    known = inspect.signature(type(model.to_nnx__module).__call__).parameters
    mode: dict[str, Any] = {name: value is train for name, value in _MODE_ARGUMENTS.items() if name in known}
    if "deterministic" in known:
        mode["deterministic"] = True
    return model(inputs, mutable=["batch_stats"] if train else False, **mode)


@contextmanager
def recording_linen(add: Callable[[str, tuple, Any], None], prefix: str = "") -> Generator[None]:
    """Calls `add(path, arguments, output)` after every call of a Linen submodule, by its path after `prefix`."""

    def intercept(function: Callable, args: tuple, kwargs: dict, context: linen.module.InterceptorContext) -> Any:
        output = function(*args, **kwargs)
        path = ".".join(context.module.path)
        if context.method_name == "__call__" and path:
            add(".".join(filter(None, (prefix, path))), args, output)
        return output

    with linen.intercept_methods(intercept):
        yield
