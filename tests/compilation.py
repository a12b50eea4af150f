"""Compiling fast what runs once, and counting what JAX compiles."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any
from unittest import mock

import jax
from jax._src import compiler  # get_compile_options, as jax 0.10.2 calls it: only jit's own options are public

UNOPTIMIZED = "jax_disable_most_optimizations"
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"  # XLA aborts or raises where it does not know it, as in jax 0.12
OLD_EMITTERS = jax.__version_info__ < (0, 11)

COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the program comes from the cache on disk


@contextlib.contextmanager
def unoptimized() -> Generator[None]:
    """Compiles without LLVM's optimisation and, where XLA still can, without MLIR for each fusion.

    The gradients of a ResNet-18 then take 0.3 seconds on jax 0.10.2, not 2.4, and 1.2 with the first alone.
    """
    jax.config.update(UNOPTIMIZED, True)
    try:
        with mock.patch.object(compiler, "get_compile_options", _with_old_emitters):
            yield
    finally:
        jax.config.update(UNOPTIMIZED, False)


_get_compile_options = compiler.get_compile_options


def _with_old_emitters(*arguments: Any, **named: Any) -> Any:
    options = _get_compile_options(*arguments, **named)
    if OLD_EMITTERS:
        options.env_option_overrides = [*options.env_option_overrides, (FUSION_EMITTERS, False)]
    return options


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
