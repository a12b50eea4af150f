"""What tests compile with."""

from pathlib import Path
from unittest import mock

import jax
import pytest
from jax._src import compiler

from tests import compilation


def test_jax_asks_for_its_options_where_the_tests_change_them():
    """Where it no longer does, tests take longer and nothing else would say so."""
    with mock.patch.object(compilation, "_get_compile_options", wraps=compilation._get_compile_options) as asked:
        jax.jit(lambda x: x + 1)(0.5)
        options = compiler.get_compile_options(1, 1)
    assert asked.call_count == 2
    assert ((compilation.FUSION_EMITTERS, False) in options.env_option_overrides) == compilation.OLD_EMITTERS


STARTED_WITH = Path("/proc/self/environ")


@pytest.mark.skipif(not STARTED_WITH.exists(), reason="Linux alone tells what a process was started with")
def test_this_process_was_not_started_with_what_is_set_for_its_children():
    """Under pytest-xdist it would be, if a conftest set it when it is imported."""
    assert compilation.FUSION_EMITTERS not in STARTED_WITH.read_text()
