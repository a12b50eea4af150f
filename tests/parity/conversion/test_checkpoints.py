"""Checkpoints that are none, or promise more than they have, are refused; what is written has always the same bytes."""

import os
import pickle
import resource
import zipfile

import numpy as np
import pytest

from parity.conversion.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from parity.errors import ParityError

torch = pytest.importorskip("torch", reason="compares with PyTorch")


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
    itself: "holds no tensors, only model: it is not a state_dict; save model.state_dict\\(\\) instead",
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


@pytest.mark.parametrize("elements", [10**6, 10**11, 10**15])
def test_an_array_that_promises_more_than_the_file_has(tmp_path, elements):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({elements},), }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", array)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ParityError, match="x.npz is truncated or not|x.npz needs more memory than there is, or is"):
        load_checkpoint(tmp_path / "x.npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


PICKLES = {
    "a size of its own": b"\x80\x04\x8e" + (2**44).to_bytes(8, "little") + b"x.",
    "an array of 2**45 bytes": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    b"(\x8a\x06\x00\x00\x00\x00\x00\x20tU\x01btR.",
    "no pickle": b"hello",
    "an absent number": b"\x80\x02h\x07.",
    "nothing to pop": b"\x80\x020.",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_pickles_that_are_damaged_or_promise_too_much(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ParityError, match=r"x\.pkl (is truncated|holds|needs more memory)"):
        load_checkpoint(tmp_path / "x.pkl")


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "a\0b.pth", "none.pth", "none/x.safetensors"])
def test_names_that_no_file_has(name):
    with pytest.raises(ParityError, match="cannot be read|does not exist"):
        load_checkpoint(name)


def test_tied_weights_are_no_bomb(tmp_path):
    """PyTorch stores a tensor once that has several names."""
    shared = torch.ones(2**18)
    torch.save({f"w{number}": shared for number in range(4)}, tmp_path / "x.pth")
    assert len(load_checkpoint(tmp_path / "x.pth")) == 4


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
