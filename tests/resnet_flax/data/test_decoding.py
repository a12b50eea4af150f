"""Image files that differ from what torchvision's loader makes of them on request, and files that are none."""

import gzip
import io
import os
import socket
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from resnet_flax.data import CorruptImage, open_source
from resnet_flax.data.decoding import Decoding, decode_grey, decode_rgb
from resnet_flax.data.folder import read_image
from resnet_flax.errors import UserError
from resnet_flax.inference import find_images


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_on_request(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    data = encode(Image.fromarray(pixels), kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    stored, turned = decode_rgb(data, "x"), decode_rgb(data, "x", Decoding(exif_orientation=True))
    assert stored.shape == (16, 24, 3)
    # The EXIF standard (CIPA DC-008, 4.6.4): where row 0 and column 0 of what is stored are when it is shown.
    shown = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: lambda x: x.swapaxes(0, 1)[:, ::-1],
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: x.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    np.testing.assert_array_equal(turned, shown[orientation](stored))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_on_request(kind):
    values = np.array([[0, 128, 129, 257], [385, 386, 65406, 65535]], np.uint16)
    data = encode(Image.fromarray(values), kind)
    with pytest.raises(CorruptImage, match="more than 8 bits; store it with 8, or add --scale-16-bit"):
        decode_grey(data, "x.png")
    expected = [[0, 0, 1, 1], [1, 2, 254, 255]]  # round(255 * value / 65535)
    np.testing.assert_array_equal(decode_grey(data, "x", Decoding(scale_16_bit=True))[..., 0], expected)
    np.testing.assert_array_equal(decode_rgb(data, "x", Decoding(scale_16_bit=True))[..., 2], expected)


def test_other_wide_pixels_are_refused_all_the_same():
    data = encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(CorruptImage, match="more than 8 bits; store it with 8$"):
        decode_rgb(data, "x.tif", Decoding(scale_16_bit=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_limit_of_pixels_is_ours(kind):
    data = encode(Image.new("L", (40, 30)), kind)
    with pytest.raises(CorruptImage, match="x: it has 40x30 = 1,200 pixels, more than --max-pixels 1,199.*1200$"):
        decode_rgb(data, "x", Decoding(max_pixels=1199))
    assert decode_rgb(data, "x", Decoding(max_pixels=1200)).shape == (30, 40, 3)


def test_pillows_limit_does_not_count_and_stays(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(Image.new("L", (40, 30)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_rgb(data, "x").shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def make_pipe(folder):
    os.mkfifo(folder / "x.png")
    return folder / "x.png"


def make_socket(folder):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/x.png")
        os.close(here)
    return folder / "x.png"


def make_link(target):
    def make(folder):
        (folder / "x.png").symlink_to(target)
        return folder / "x.png"

    return make


def make_sparse(folder):
    with (folder / "x.png").open("wb") as file:
        file.truncate(2**40)
    return folder / "x.png"


BAD = [
    (make_pipe, "named pipe"),
    (make_socket, "socket"),
    (make_link("/dev/zero"), "device"),
    (make_link("/"), "directory"),
    (make_link("x.png"), "[Ss]ymbolic links"),
    (make_link("nothing"), "No such file"),
    (make_link("/proc/self/maps"), ""),  # its size is 0
    (make_sparse, "1,099,511,627,776 bytes"),
    (lambda folder: f"{folder}/a\0b.png", "no file can have this name"),
    (lambda folder: folder / ("x" * 300), "too long"),
    (lambda folder: folder / "x.png" / "y.png", "No such file"),
]


@pytest.mark.parametrize(("make", "reason"), BAD)
def test_only_regular_files_are_read(tmp_path, make, reason):
    path = make(tmp_path)
    if not reason:
        assert read_image(path) == b""
        return
    with pytest.raises(CorruptImage, match=reason):
        read_image(path)


def test_unreadable_and_undecodable_names(tmp_path):
    name = os.fsdecode(b"\xff.png")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    assert [path.name for path in find_images([str(tmp_path)])] == [name]
    assert decode_grey(read_image(tmp_path / name), name).shape == (2, 2, 1)
    (tmp_path / "set" / os.fsdecode(b"\xe9t\xe9")).mkdir(parents=True)
    with pytest.raises(UserError, match="is not UTF-8; rename it"):
        open_source(f"folder:{tmp_path / 'set'}")


def test_names_that_are_too_long_for_a_file():
    with pytest.raises(UserError, match="too long"):
        find_images(["x" * 300])


def header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (header(2**32 - 1, 2**20, 2**20), "but has 16 in all"),
        (header(2**31, 28, 28) + b"\0" * 784, "but has 800 in all"),
        (gzip.compress(header(2**31, 28, 28) + b"\0" * 2**20), "in all before unpacking"),
        (gzip.compress(header(4, 2, 2) + b"\0" * 2**26), r"\(4, 2, 2\) bytes after its header, but has 17"),
    ],
)
def test_idx_files_that_promise_more_than_they_have(tmp_path, images, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(header(4) + b"\0\1\0\1")
    with pytest.raises(UserError, match=message):
        open_source(f"idx:{tmp_path}")


def test_idx_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match="it is a named pipe"):
        open_source(f"idx:{tmp_path}")
