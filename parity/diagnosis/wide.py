"""A traced JAX function run in float64 throughout, to see whether a narrower type on the way is what differs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

_WIDE = jnp.dtype("float64")


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is a floating one with less than 64 bits."""
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 8


def is_narrowed(closed: jax.extend.core.ClosedJaxpr) -> bool:
    """Whether a value of a narrower type occurs anywhere in a jaxpr, whose text has every type."""
    text = str(closed)
    return any(f"{name}[" in text for name in ("f32", "bf16", "f16"))


def widened(closed: jax.extend.core.ClosedJaxpr, *arguments: Any) -> tuple[list[Any], list[str]]:
    """What a jaxpr gives when no value is ever narrowed, and the names of the types that it would have narrowed to.

    Raises:
        NotImplementedError: for loops and branches, whose bodies are compiled for their own types.
    """
    narrowed: set[str] = set()
    outputs = _evaluated(closed.jaxpr, closed.consts, arguments, narrowed)
    return outputs, sorted(narrowed)


def _evaluated(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], narrowed: set[str]) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return _wide(atom.val) if hasattr(atom, "val") else values[atom]

    values.update(zip(jaxpr.constvars, map(_wide, constants), strict=True))
    values.update(zip(jaxpr.invars, map(_wide, arguments), strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _applied(equation, inputs, narrowed)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _applied(equation: Any, inputs: list[Any], narrowed: set[str]) -> list[Any]:
    name, parameters = equation.primitive.name, dict(equation.params)
    if name in ("while", "scan", "cond"):
        raise NotImplementedError(name)
    inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
    if inner is not None:
        closed = inner if hasattr(inner, "consts") else None
        return _evaluated(closed.jaxpr if closed else inner, closed.consts if closed else (), inputs, narrowed)
    if name in ("convert_element_type", "reduce_precision"):
        if name == "reduce_precision":
            return inputs
        dtype = parameters["new_dtype"]
        if is_narrow(dtype):
            if not is_narrow(equation.invars[0].aval.dtype) and jnp.issubdtype(inputs[0].dtype, jnp.floating):
                narrowed.add(jnp.dtype(dtype).name)
            parameters["new_dtype"] = _WIDE
    for key in ("dtype", "preferred_element_type"):
        if is_narrow(parameters.get(key)):
            narrowed.add(jnp.dtype(parameters[key]).name)
            parameters[key] = _WIDE
    result = equation.primitive.bind(*inputs, **parameters)
    return list(result) if equation.primitive.multiple_results else [result]


def _wide(value: Any) -> Any:
    value = jnp.asarray(value) if not isinstance(value, jax.Array) else value
    return value.astype(_WIDE) if is_narrow(value.dtype) else value
