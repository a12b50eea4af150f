"""Compiled programs are kept where the user can write, and never at the price of a run."""

import jax
import pytest

from resnet_flax.cache import WORTH_KEEPING, use_compilation_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def settings(monkeypatch):
    """JAX's two, as a process begins with them."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    yield lambda: tuple(getattr(jax.config, name) for name in SETTINGS)
    for name, value in before.items():
        jax.config.update(name, value)


def test_in_the_cache_directory(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path))
    use_compilation_cache()
    assert settings() == (str(tmp_path / "jax"), WORTH_KEEPING)


def test_what_the_user_has_set_stays(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    use_compilation_cache()
    assert settings() == (str(tmp_path / "jax"), 1.0)
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use_compilation_cache()
    assert settings()[0] == "elsewhere"


def test_without_a_place_nothing_is_kept(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path / "file"))
    use_compilation_cache()
    assert settings() == (None, 1.0)
