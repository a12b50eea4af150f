"""What a network is called with: one array, or arrays in nested tuples and dicts, and the mode."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def named_arrays(tree: Any, name: str = "") -> dict[str, Any]:
    """The arrays in nested tuples and dicts by dotted name, a lone one under ""; Python's own values are no arrays."""
    if isinstance(tree, Mapping | tuple):
        children = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {
            path: array
            for key, child in children
            for path, array in named_arrays(child, f"{name}.{key}" if name else str(key)).items()
        }
    return {} if tree is None or isinstance(tree, bool | int | float | str) else {name: tree}


def with_arrays(tree: Any, arrays: Mapping[str, Any], name: str = "") -> Any:
    """`tree` with these in the place of its arrays."""
    if isinstance(tree, Mapping | tuple):
        children = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        built = {key: with_arrays(child, arrays, f"{name}.{key}" if name else str(key)) for key, child in children}
        if isinstance(tree, Mapping):
            return built
        return type(tree)(*built.values()) if hasattr(tree, "_fields") else tuple(built.values())
    return arrays.get(name, tree)


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `function` of every array."""
    return with_arrays(tree, {name: function(array) for name, array in named_arrays(tree).items()})


def batch_size(inputs: Any) -> int:
    """The length of the first axis of the first array that has one."""
    return next((len(array) for array in named_arrays(inputs).values() if np.ndim(array)), 1)


def arguments_of(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The positional and the named arguments of a call: a tuple's, a dict's, or the one that anything else is."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""What a network may take the mode by at call time, and its value in train mode."""


def mode_arguments(call: Callable, inputs: Any) -> dict[str, bool]:
    """{name: value in train mode} of the switches that a network's call takes and `inputs` does not give."""
    try:
        taken = list(inspect.signature(call).parameters.values())
    except ValueError:  # of a function that is not written in Python nothing is known
        return {}
    positional, named = arguments_of(inputs)
    free = [parameter.name for parameter in taken[len(positional) :] if parameter.name not in named]
    return {name: value for name, value in MODE_ARGUMENTS.items() if name in free}
