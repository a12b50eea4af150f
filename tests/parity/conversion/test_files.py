"""Files that are none, and archives that promise more than they have: refused with a sentence, unpacking nothing."""

import os
import pickle
import resource
import sys
import zipfile

import numpy as np
import pytest

from parity.conversion.checkpoints import load_checkpoint, write_checkpoint
from parity.conversion.files import open_regular, read_regular
from parity.errors import ParityError, UsageError, dispatch

torch = pytest.importorskip("torch")


def pipe(path):
    os.mkfifo(path)


def directory(path):
    path.mkdir()


def circle(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def itself(path):
    """A dictionary that holds itself under the name of a wrapper."""
    content = {}
    content["model"] = {"state_dict": content}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(content, 2))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")


def compressed(path):
    """A checkpoint whose entries are packed, and unpack to a thousand times the file's size."""
    torch.save({"w": torch.zeros(2**24)}, path.with_suffix(".raw"))
    with zipfile.ZipFile(path.with_suffix(".raw")) as raw, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in raw.infolist():
            packed.writestr(entry.filename, raw.read(entry))


def expanded(path):
    """One number, as a tensor of a thousand million."""
    torch.save({"w": torch.zeros(1).expand(2**30)}, path)


BAD = {
    pipe: "it is a named pipe, not a file",
    directory: "is a directory",
    circle: "too many levels of symbolic links",
    device: "it is a device, not a file",
    itself: "a dictionary that contains itself",
    compressed: r"has [\d,]+ bytes but unpacks to 67,\d+,\d+, .*; nothing was unpacked",
    expanded: r"unpacks to 4,294,967,296",
}


@pytest.mark.parametrize("make", BAD)
def test_bad_checkpoints_are_a_sentence(tmp_path, make):
    make(tmp_path / "x.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ParityError, match=BAD[make]):
        load_checkpoint(tmp_path / "x.pth")
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    )  # KiB: half of what would be unpacked


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "a\0b.pth", "none.pth", "none/x.safetensors"])
def test_names_that_no_file_has(name):
    with pytest.raises(ParityError, match="cannot be read|does not exist"):
        load_checkpoint(name)


def test_tied_weights_are_no_bomb(tmp_path):
    """PyTorch stores a tensor once that has several names."""
    shared = torch.ones(2**18)
    torch.save({f"w{number}": shared for number in range(4)}, tmp_path / "x.pth")
    assert len(load_checkpoint(tmp_path / "x.pth")) == 4


def test_regular_files_are_read_up_to_a_limit(tmp_path):
    write_checkpoint(tmp_path / "x.safetensors", {"w": np.ones(3, np.float32)})
    (tmp_path / "link").symlink_to(tmp_path / "x.safetensors")
    with open_regular(tmp_path / "link") as file:
        content = file.read()
    assert read_regular(tmp_path / "link", len(content)) == content
    with pytest.raises(OSError, match="bytes, more than"):
        read_regular(tmp_path / "link", len(content) - 1)


class Command:
    """A module with a command that raises what it is given."""

    def __init__(self, error):
        self.error = error

    def main(self, arguments):
        raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("no file \x1b[31mred\udcff\u202e"), r"error: no file \x1b[31mred\udcff\u202e"),
        (OSError(36, "File name too long", "x\x07"), r"error: x\x07: File name too long"),
    ],
)
def test_errors_reach_the_terminal_escaped(monkeypatch, capsys, error, line):
    monkeypatch.setitem(sys.modules, "raising", Command(error))
    assert dispatch("x", {"go": ("raising", "")}, ["go"]) == 2
    assert capsys.readouterr().err == line + "\n"
