"""Specs of data sets: which of them have paths, and which options are for which."""

import pytest

from resnet_flax.data import SourceOptions, open_source
from resnet_flax.data.specs import KINDS, WRITABLE, absolute, is_path, writer_of
from resnet_flax.errors import UserError


def test_paths_in_specs_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    paths = ["folder:a", "idx:a", "parquet:a/{train,val}-*.parquet", "wds:a-{00..11}.tar", "hf:saved", "hf:saved:train"]
    for spec in paths:
        scheme, _, rest = spec.partition(":")
        assert is_path(spec)
        assert absolute(spec) == f"{scheme}:{tmp_path}/{rest}"
    for spec in ("digits", "tfds:mnist:3.0.1", "synthetic:8x8x3:4", "hf:owner/name", "hf:name:train"):
        assert not is_path(spec)
        assert absolute(spec) == spec
    assert is_path("hf:/a/directory/that/has/moved")


def test_options_are_for_some_kinds():
    message = r"--image is for folder:DIR or hf:.* or parquet:GLOB or wds:GLOB; digits has its own"
    with pytest.raises(UserError, match=message):
        open_source("digits", options=SourceOptions(image="x"))


def test_every_writer_is_there():
    pytest.importorskip("datasets")
    pytest.importorskip("tensorflow_datasets")
    assert WRITABLE == ("tfds", "hf", "parquet", "wds")
    assert all(callable(writer_of(form)) for form in WRITABLE)
    assert all(KINDS[form].form.startswith(f"{form}:") for form in WRITABLE)
