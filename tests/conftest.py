"""What every test runs under: strict shapes and a shared compilation cache."""

import jax

from resnet_flax.cache import cache_directory

CACHE = cache_directory("jax-tests")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
