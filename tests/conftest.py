"""What every test runs under: strict shapes, a shared compilation cache, and strict types where they can be."""

import contextlib
import signal

import jax
import pytest

from resnet_flax.cache import cache_directory

CACHE = cache_directory("jax-tests")
STRICT_DTYPES = ("layers", "models", "data")  # Optax, elsewhere, mixes Python's floats with integer counts

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No array of these packages is promoted but where the code says so."""
    strict = request.path.parent.name in STRICT_DTYPES
    with jax.numpy_dtype_promotion("strict") if strict else contextlib.nullcontext():
        yield
