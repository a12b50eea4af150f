"""Files are whole or absent, also where a writer was killed, and have the same bytes for the same content."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from parity import ParityError
from parity.conversion.checkpoints import read_checkpoint, write_checkpoint
from parity.conversion.files import INCOMPLETE, write_text, write_whole
from tests import ROOT

KILLED = """
import os, sys
from pathlib import Path
from parity.conversion.files import write_whole
def die(temporary):
    temporary.write_text("half")
    os._exit(9)
write_whole(Path(sys.argv[1]), die)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert path.read_text() == "whole"
    assert len(list(tmp_path.glob(f"{INCOMPLETE}*"))) == 1
    write_text(tmp_path / "b.txt", "whole too")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_writer_that_is_alive_is_left_alone(tmp_path):
    def write(temporary):
        temporary.write_text("outer")
        write_text(tmp_path / "inner", "inner")

    write_whole(tmp_path / "outer", write)
    assert (tmp_path / "outer").read_text() == "outer"
    assert (tmp_path / "inner").read_text() == "inner"


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path, monkeypatch, links):
    def refuse(*args, **options):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a"
    write_text(path, "first", new=True)
    with pytest.raises(FileExistsError):
        write_text(path, "second", new=True)
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_text(path, "before")

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ParityError, match=r"cannot write .*/a: Input/output error"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_safetensors_files_have_the_same_bytes(tmp_path):
    """The library itself orders the metadata at random: with twelve entries, five equal files would be chance."""
    metadata = {f"key {i}": 'ü\x01\x7f\u2028"\\/' * i for i in range(12)}
    tensors = {"b": np.arange(5.0), "a": np.ones((2, 2), np.float16)}
    path, found = tmp_path / "a.safetensors", set()
    for _ in range(5):
        write_checkpoint(path, tensors, metadata)
        found.add(path.read_bytes())
    assert len(found) == 1
    read = read_checkpoint(path)
    assert {key: read.metadata[key] for key in metadata} == metadata
    np.testing.assert_array_equal(read.tensors["b"], tensors["b"])
