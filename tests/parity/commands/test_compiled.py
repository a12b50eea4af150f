"""Where a command keeps compiled programs, and that it never has to."""

import jax
import pytest

from parity.commands.compiled import keep_compiled_programs


@pytest.fixture
def cache_of_jax():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_in_the_cache_of_the_user(cache_of_jax, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled_programs()
    assert cache_of_jax() == str(tmp_path / "cache" / "parity")


def test_where_the_user_has_set_it(cache_of_jax, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled_programs()
    assert cache_of_jax() == str(tmp_path)


def test_nowhere_if_nothing_can_be_written(cache_of_jax, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled_programs()
    assert cache_of_jax() is None
