"""The programs that checks compile, kept for the next one."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """JAX finds the programs of earlier checks in `$XDG_CACHE_HOME/parity`, or `~/.cache/parity`.

    Unless JAX_COMPILATION_CACHE_DIR is set, or nothing can be written there.
    """
    if jax.config.jax_compilation_cache_dir:  # ty: ignore[missing-attribute]
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home directory
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parity"
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            jax.config.update("jax_compilation_cache_dir", str(directory))
