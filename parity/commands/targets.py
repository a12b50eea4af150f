"""What `package.module:function` on a command line returns."""

import importlib
import sys
from pathlib import Path
from typing import Any

from parity.conversion.trees import is_function_pair, is_linen_pair
from parity.errors import ParityError


def load_target(target: str) -> tuple[Any, ...]:
    """Calls the function, and gives what it returned as a tuple; one network is a tuple of one.

    Modules are found in the working directory too, as `python -m` finds them.

    Raises:
        ParityError: if there is no such module or function, or it needs arguments.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ParityError(f"{target}: expected package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ParityError(f"{target}: {module_name} needs the module {error.name}, which is not found") from error
        raise ParityError(f"{target}: there is no module {error.name} here or among the installed ones") from error
    function = getattr(module, name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        found = "nothing of that name" if function is None else f"something of type {type(function).__name__}"
        raise ParityError(f"{target}: {module_name} has {found}; its functions are {', '.join(public[:10]) or 'none'}")
    try:
        returned = function()
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is None:  # raised by the call itself
            raise ParityError(f"{target}: it must need no arguments ({error})") from error
        raise
    is_one = not isinstance(returned, tuple) or is_linen_pair(returned) or is_function_pair(returned)
    return (returned,) if is_one else returned
