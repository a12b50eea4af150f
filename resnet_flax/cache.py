"""The directory of downloaded weights and compiled programs."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax

WORTH_KEEPING = 0.1
"""Seconds of compilation; JAX's own default of one second leaves out most of what a small network compiles."""


def cache_directory(*parts: str) -> Path:
    """`$RESNET_FLAX_CACHE`, or resnet_flax under `$XDG_CACHE_HOME`, or `~/.cache/resnet_flax`; created if missing."""
    base = os.environ.get("RESNET_FLAX_CACHE")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_flax"
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def use_compilation_cache() -> None:
    """Caches compiled programs in `cache_directory("jax")`, unless JAX_COMPILATION_CACHE_DIR is set."""
    if jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        return
    with contextlib.suppress(OSError, RuntimeError):  # no writable home directory: runs compile every time
        directory = cache_directory("jax")
        with tempfile.TemporaryFile(dir=directory):
            jax.config.update("jax_compilation_cache_dir", str(directory))
            if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
                jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
