"""What every test runs under: strict shapes, a shared compilation cache, one thread of torch per worker."""

import os
from pathlib import Path

import jax

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "resnet_flax" / "jax-tests"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
