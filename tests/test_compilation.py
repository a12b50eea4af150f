"""What tests compile with."""

from unittest import mock

import jax
from jax._src import compiler

from tests import compilation


def test_jax_asks_for_its_options_where_the_tests_change_them():
    """Where it no longer does, tests take longer and nothing else would say so."""
    with mock.patch.object(compilation, "_get_compile_options", wraps=compilation._get_compile_options) as asked:
        jax.jit(lambda x: x + 1)(0.5)
        options = compiler.get_compile_options(1, 1)
    assert asked.call_count == 2
    assert ((compilation.FUSION_EMITTERS, False) in options.env_option_overrides) == compilation.OLD_EMITTERS
