"""Files are whole or absent, also where a writer was killed; only regular ones are read."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parity import ParityError
from parity.conversion.files import INCOMPLETE, open_regular, read_regular, tidied, write_text, write_whole
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


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    """/dev/stdout and /dev/null, which renaming would replace."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    (tmp_path / "null").symlink_to(os.devnull)
    write_text(tmp_path / "null", "text")
    assert (tmp_path / "null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_regular_files_are_read_up_to_a_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with open_regular(tmp_path / "link") as file:
        content = file.read()
    assert content == b"content"
    assert read_regular(tmp_path / "link", len(content)) == content
    with pytest.raises(OSError, match="bytes, more than"):
        read_regular(tmp_path / "link", len(content) - 1)


def test_a_path_is_shown_without_detours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real" / "below").mkdir(parents=True)
    assert tidied("./real/../b//") == Path("b")
    assert tidied("../x") == Path("../x")
    (tmp_path / "link").symlink_to("real/below")
    assert tidied("link/../b") == Path("link/../b")  # which is real/b, not b
