"""Counting what JAX compiles."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the program comes from the cache on disk


@contextlib.contextmanager
def compilations() -> Generator[list[str]]:
    """The names of the programs that are compiled inside."""
    names: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == COMPILED:
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_compiles_once(call: Callable[[], Any]) -> None:
    """Asserts that `call` compiles something the first time, so that it is seen, and nothing the second time."""
    with compilations() as first:
        call()
    with compilations() as second:
        call()
    assert first, "the first call compiled nothing: it was made before, or JAX has renamed its event"
    assert not second, f"the second call compiled {', '.join(second)} again"
