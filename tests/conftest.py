"""What every test runs under: strict shapes, a shared compilation cache, and strict types where they can be.

Programs are compiled without LLVM's optimisation but where their arithmetic is what is tested: most of a run's time was
the compiler's, for programs that run once on a few numbers.
"""

import contextlib
import gc
import itertools
import os
import signal
from pathlib import Path

import jax
import pytest

from resnet_flax.cache import cache_directory
from tests.compilation import FUSION_EMITTERS, OLD_EMITTERS, UNOPTIMIZED, unoptimized

FILES_DONE = itertools.count(1)
CACHE = cache_directory("jax-tests")
STRICT_DTYPES = ("layers", "models", "data")  # Optax, elsewhere, mixes Python's floats with integer counts
OPTIMIZED = (  # as users compile it
    *("resnet_flax/layers", "resnet_flax/compiled", "resnet_flax/training/test_step.py"),
    *("resnet_flax/training/test_optimizers.py", "test_numerics.py"),
)
TRAINING_PAGES = "training.md", "tutorial.md"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_traceback_in_locations_limit", 0)  # where in the source: written into programs, read by no test
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # pytest in the background of a script, or under nohup
        signal.signal(number, default)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Around the fixtures of any scope, which compile as well. The pages that train are optimized, too."""
    tests = Path(__file__).parent
    listed = any(item.path.is_relative_to(tests / one) for one in OPTIMIZED)
    optimized = listed and item.get_closest_marker("unoptimized") is None
    with contextlib.nullcontext() if optimized or item.path.name in TRAINING_PAGES else unoptimized():
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def children_compile_as_unoptimized_tests_do():
    """Here, since pytest-xdist's workers would take it from the process that starts them, and compile so themselves."""
    jax.numpy.zeros(())  # this process has now read XLA_FLAGS
    os.environ.setdefault(UNOPTIMIZED.upper(), "1")
    if OLD_EMITTERS:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{FUSION_EMITTERS}=false".strip()


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No array of these packages is promoted but where the code says so."""
    strict = request.path.parent.name in STRICT_DTYPES
    with jax.numpy_dtype_promotion("strict") if strict else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """What a file leaves behind, JAX's traces above all, is not searched again in every later collection.

    The package and Orbax collect after each command, run and restored checkpoint: a second each in a grown process.
    What JAX has compiled is dropped after every 24 files: without that, a process grows to 8 GB.
    """
    yield
    if next(FILES_DONE) % 24 == 0:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()
