"""Sources: what they hold, that folders and decoding are torchvision's, and what is said of unusable input."""

import errno
import gzip
import inspect
import io
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnet_flax.__main__ import main
from resnet_flax.data import CorruptImage, evaluation_batches, evaluation_transform, open_source
from resnet_flax.data.arrays import read_digits
from resnet_flax.data.decoding import decode_grey, decode_rgb
from resnet_flax.data.prepare import write_tfds
from resnet_flax.data.splits import held_out
from resnet_flax.errors import UserError

RNG = np.random.default_rng(0)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def noise(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), np.uint8).squeeze()


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_idx(path, array, magic=None):
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    data = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_idx(folder, suffix=""):
    for prefix, count in (("train", 12), ("t10k", 5)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", noise(count, 4, 6))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 4)
    return folder


def make_folder(root, classes=("10", "2", "a"), splits=("train", "val"), count=3):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise(5 + i, 7)).save(root / split / name / f"{i}.png")
    return root


def test_digits_are_those_of_scikit_learn():
    """Where they lie in its wheel is not documented."""
    images, labels = read_digits()
    theirs = load_digits()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)
    assert open_source("digits").class_names == tuple(map(str, theirs.target_names))


def test_digits_have_a_fixed_stratified_split():
    train, test = open_source("digits"), open_source("digits", "val")
    assert (len(train), len(test), train.num_classes, train.channels) == (1438, 359, 10, 1)
    assert train[3]["image"].shape == (8, 8, 1)
    assert train.images.max() == 255
    np.testing.assert_allclose(np.bincount(train.labels) / np.bincount(test.labels), 4, atol=0.2)
    everything = {image.tobytes() for image in np.concatenate([train.images, test.images])}
    assert len(everything) > 1750  # a few digits occur twice; none is in both because of the split itself
    assert int(train.labels[:12] @ np.arange(12)) == int(open_source("digits").labels[:12] @ np.arange(12))


def test_stratified_split_partitions_every_class():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 2 + [3])
    train, test = (held_out(labels, rest=rest) for rest in (True, False))
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert np.bincount(labels[test], minlength=4).tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_plain_and_zipped(tmp_path, suffix):
    make_idx(tmp_path, suffix)
    train, test = open_source(f"idx:{tmp_path}"), open_source(f"idx:{tmp_path}", "test")
    assert (len(train), len(test)) == (12, 5)
    assert train[0]["image"].shape == (4, 6, 1)
    assert test.class_names == ("0", "1", "2", "3")
    assert [test[i]["label"] for i in range(5)] == [0, 1, 2, 3, 0]


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_from_debian():
    train, test = open_source(f"idx:{FASHION}"), open_source(f"idx:{FASHION}", "test")
    assert train.images.shape == (60000, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(train.images.mean() / 255, 0.2860, atol=1e-4)  # the set's well-known mean
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def break_truncated(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-3])


def break_magic(folder):
    write_idx(folder / "train-images-idx3-ubyte", noise(12, 4, 6), magic=b"\x00\x00\x0d\x03")


def break_count(folder):
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))


def break_gzip(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes())[:40])


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (break_truncated, r"train-images.*\(12, 4, 6\) bytes.*285"),
        (break_magic, "not an IDX file of unsigned bytes.*00000d03"),
        (break_count, "12 images, but 11 labels"),
        (break_gzip, "cannot read .*train-images"),
        (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b""), "starts with nothing"),
        (lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "train-labels-idx1-ubyte.*it has none"),
    ],
)
def test_unusable_idx_files(tmp_path, breaking, message):
    breaking(make_idx(tmp_path))
    with pytest.raises(UserError, match=message):
        open_source(f"idx:{tmp_path}")


def test_folder_is_torchvisions_image_folder(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    make_folder(tmp_path)
    nested = tmp_path / "train" / "10" / "b"
    nested.mkdir()
    Image.fromarray(noise(3, 4)).save(nested / "0.JPG", "JPEG")
    (tmp_path / "train" / "2" / "notes.txt").write_text("not an image")
    for split in ("train", "val"):
        theirs, ours = datasets.ImageFolder(str(tmp_path / split)), open_source(f"folder:{tmp_path}", split)
        assert ours.class_names == tuple(theirs.classes) == ("10", "2", "a")
        assert list(zip(ours.paths, ours.labels, strict=True)) == theirs.samples
        for i, (image, label) in enumerate(theirs):
            np.testing.assert_array_equal(ours[i]["image"], np.asarray(image))
            assert ours[i]["label"] == label


def test_hidden_files_are_no_data_and_others_are_told_of(tmp_path, capsys):
    make_folder(tmp_path)
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "train" / ".ipynb_checkpoints")
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "train" / "a" / ".ipynb_checkpoints")
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "a" / "._0.png")
    for name in ("x.heic", "y.heic", "README"):
        (tmp_path / "train" / "2" / name).write_bytes(b"")
    source = open_source(f"folder:{tmp_path}")
    assert (len(source), source.class_names) == (9, ("10", "2", "a"))
    assert main(["data", "show", f"folder:{tmp_path}"]) == 0
    assert "ignored, not images: 2 .heic, 1 no extension\n" in capsys.readouterr().out


def test_hidden_parents_hide_nothing(tmp_path):
    make_folder(tmp_path / ".data")
    assert len(open_source(f"folder:{tmp_path / '.data'}")) == 9


def test_test_images_without_classes_are_passed_over(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "test").mkdir()
    Image.fromarray(noise(5, 5)).save(tmp_path / "test" / "1.png")
    assert len(open_source(f"folder:{tmp_path}", "test")) == 9


def test_a_single_folder_is_split_and_splits_have_synonyms(tmp_path):
    make_folder(tmp_path, splits=(".",), count=10)
    train, test = open_source(f"folder:{tmp_path}"), open_source(f"folder:{tmp_path}", "test")
    assert (len(train), len(test)) == (24, 6)
    assert not set(train.paths) & set(test.paths)
    shutil.copytree(tmp_path / "a", tmp_path / "x" / "train" / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "x" / "validation" / "a")
    assert "validation" in open_source(f"folder:{tmp_path / 'x'}", "test").paths[0]


def variants():
    """Every kind of file a folder may hold, as (name, bytes)."""
    rgb, grey = Image.fromarray(noise(33, 47)), Image.fromarray(noise(33, 47, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: torchvision ignores it
    yield "rotated.jpg", encode(rgb, "JPEG", exif=exif)
    yield "progressive.jpg", encode(rgb, "JPEG", progressive=True)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield f"{subsampling}.jpg", encode(rgb, "JPEG", subsampling=subsampling, quality=91)
    yield "rgb.jpg", encode(rgb, "JPEG", keep_rgb=True)
    yield "grey.jpg", encode(grey, "JPEG")
    yield "cmyk.jpg", encode(rgb.convert("CMYK"), "JPEG")
    yield "palette.png", encode(rgb.quantize(16), "PNG")
    yield "transparent.png", encode(rgb.quantize(16), "PNG", transparency=b"\x00\x80" + b"\xff" * 14)
    yield "alpha.png", encode(Image.fromarray(noise(9, 8, 4)), "PNG")
    yield "grey-alpha.png", encode(rgb.convert("LA"), "PNG")
    yield "one-bit.png", encode(grey.convert("1"), "PNG")
    yield "pixel.png", encode(Image.fromarray(noise(1, 1).reshape(1, 1, 3)), "PNG")
    yield "pixel.jpg", encode(Image.fromarray(noise(1, 1).reshape(1, 1, 3)), "JPEG")
    for kind in ("BMP", "TIFF", "WEBP", "PPM"):
        yield f"image.{kind.lower()}", encode(rgb, kind)


@pytest.mark.parametrize(("name", "data"), list(variants()), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, in the expected value
def test_decoding_is_what_torchvision_makes_of_a_file(name, data):
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, name), expected)


def test_colours_that_cannot_be_grey_are_named():
    with pytest.raises(CorruptImage, match="cannot read image lab.tif: conversion from LAB"):
        decode_grey(encode(Image.new("LAB", (4, 4)), "TIFF"), "lab.tif")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"plain text", "not an image"),
        (encode(Image.fromarray(noise(40, 40)), "PNG")[:400], "truncated"),
        (encode(Image.fromarray(RNG.integers(0, 65536, (9, 8), np.uint16)), "PNG"), "more than 8 bits; store it with"),
        (encode(Image.fromarray(RNG.random((9, 8), np.float32)), "TIFF"), "more than 8 bits"),
    ]
    + [(encode(Image.fromarray(noise(40, 40)), "JPEG")[:n], "cannot read image x.jpg") for n in (2, 100, 700)],
)
def test_damaged_images_are_named(data, reason):
    with pytest.raises(CorruptImage, match=f"(?=.*x.jpg).*{reason}"):
        decode_rgb(data, "x.jpg")


def lacking_class(root):
    (root / "val" / "zebra").mkdir()


def empty_class(root):
    (root / "train" / "empty").mkdir()


def single_images(root):
    shutil.rmtree(root)
    make_folder(root, splits=(".",), count=1)


@pytest.mark.parametrize(
    ("breaking", "split", "message"),
    [
        (lacking_class, "val", "classes that are not in the training set: zebra"),
        (empty_class, "train", "no images of class empty"),
        (lambda root: shutil.rmtree(root), "train", "no directory"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "train", "no class folders"),
        (lambda root: None, "devil", "no split 'devil'"),
        (single_images, "test", "a class needs at least two to have one held out"),
    ],
)
def test_unusable_folders(tmp_path, breaking, split, message):
    root = make_folder(tmp_path / "set")
    breaking(root)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{root}", split)


@pytest.mark.parametrize(
    "spec", ["", "digit", "digits:", "idx:", "folder", "synthetic:4x4:2", "synthetic:4x4x3:0", "s3://x"]
)
def test_unknown_specs_list_the_forms(spec):
    with pytest.raises(UserError, match="synthetic:HxWxC:N"):
        open_source(spec)


def test_synthetic_images_differ_and_repeat():
    source = open_source("synthetic:5x6x3:30")
    assert source[7]["image"].shape == (5, 6, 3)
    assert (source[7]["image"] == open_source("synthetic:5x6x3:30")[7]["image"]).all()
    assert (source[7]["image"] != source[8]["image"]).any()
    assert source.labels.tolist() == [source[i]["label"] for i in range(30)]


def test_a_folder_written_as_tfds_reads_back_the_same(tmp_path):
    root = make_folder(tmp_path / "set", count=4)
    for split in ("train", "val"):
        Image.fromarray(noise(9, 9)).save(root / split / "a" / "x.jpg")
        Image.fromarray(noise(9, 9)).save(root / split / "a" / "y.bmp")
    sources = {split: open_source(f"folder:{root}", split) for split in ("train", "test")}
    path = write_tfds("small_set", tmp_path / "tfds", sources)
    assert path == tmp_path / "tfds" / "small_set" / "1.0.0"
    for split, source in sources.items():
        copy = pickle.loads(pickle.dumps(open_source("tfds:small_set", split, data_dir=tmp_path / "tfds")))
        assert copy.class_names == source.class_names
        assert copy.labels.tolist() == source.labels.tolist()
        for i in range(len(source)):
            np.testing.assert_array_equal(copy[i]["image"], source[i]["image"])
    assert copy.encoded(4) == (root / "val" / "2" / "0.png").read_bytes()
    with pytest.raises(UserError, match="exists"):
        write_tfds("small_set", tmp_path / "tfds", sources)


def test_a_name_of_tfdss_catalogue_is_refused(tmp_path):
    source = open_source("synthetic:4x4x1:8")
    with pytest.raises(UserError, match="'mnist' is in TFDS's catalogue"):
        write_tfds("mnist", tmp_path, {"train": source, "test": source})


def test_tfds_without_a_test_split_is_cut_and_images_may_be_grey(tmp_path, monkeypatch):
    source = open_source(f"idx:{make_idx(tmp_path)}")
    write_tfds("grey", tmp_path, {"train": source})
    monkeypatch.setenv("HOME", str(tmp_path))
    train, test = (open_source("tfds:grey:1.0.0", split, data_dir="~") for split in ("train", "test"))
    assert (len(train), len(test), train.channels) == (8, 4, 1)
    kept = held_out(source.labels)
    for i, j in enumerate(kept):
        np.testing.assert_array_equal(test[i]["image"], source[j]["image"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x"),  # array_record's, seen on a full tmpfs
    ],
)
def test_nothing_is_left_when_the_disk_is_full(tmp_path, monkeypatch, error):
    import tensorflow_datasets as tfds

    def full(self, examples):
        raise error

    monkeypatch.setattr(tfds.core.SequentialWriter, "add_examples", full)
    with pytest.raises(UserError, match="the disk is full; no files were left"):
        write_tfds("some", tmp_path / "deep" / "er", {"train": open_source("synthetic:4x4x3:5")})
    assert not (tmp_path / "deep").exists()


def test_a_damaged_image_stops_the_writing(tmp_path):
    root = make_folder(tmp_path / "set")
    (root / "train" / "2" / "1.png").write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"1\.png: it is empty"):
        write_tfds("broken", tmp_path / "tfds", {"train": open_source(f"folder:{root}")})
    assert not (tmp_path / "tfds").exists()


def test_unknown_and_unprepared_tfds_sets(tmp_path):
    with pytest.raises(UserError, match="no TFDS data set 'fashion_mnits'.*nearest: fashion_mnist"):
        open_source("tfds:fashion_mnits", data_dir=tmp_path)
    with pytest.raises(UserError, match="only: 3.0"):
        open_source("tfds:cifar10:9.9.9", data_dir=tmp_path)
    with pytest.raises(UserError, match="BuilderConfig foo not found"):
        open_source("tfds:imagenette/foo", data_dir=tmp_path)


def test_tfds_interface():
    """Undocumented in TFDS: what resnet_flax.data.prepare and resnet_flax.data.tfds use of it."""
    import tensorflow_datasets as tfds

    identity = inspect.signature(tfds.core.dataset_info.DatasetIdentity).parameters
    assert {"name", "version", "data_dir", "module_name"} <= identity.keys()
    assert {"builder", "features", "description", "supervised_keys"} <= (
        inspect.signature(tfds.core.DatasetInfo).parameters.keys()
    )
    writer = inspect.signature(tfds.core.SequentialWriter).parameters
    assert list(writer)[:2] == ["ds_info", "max_examples_per_shard"]
    assert "file_format" in writer
    assert {"initialize_splits", "add_examples", "close_all"} <= vars(tfds.core.SequentialWriter).keys()
    assert isinstance(tfds.core.constants.DATA_DIR, str)


def test_preparing_can_be_forbidden(tmp_path):
    with pytest.raises(UserError, match="cifar10.* is not prepared in .*; `python -m resnet_flax data show"):
        open_source("tfds:cifar10", data_dir=tmp_path, may_prepare=False)


def test_preparing_needs_tensorflow_and_says_which_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cifar10.*resnet-flax\[prepare\]"):
        open_source("tfds:cifar10", data_dir=tmp_path)


def test_the_data_command_shows_and_writes(tmp_path, capsys):
    root = make_folder(tmp_path / "set")
    sheet, figures = tmp_path / "sheet.png", tmp_path / "figures.json"
    assert main(["data", "show", f"folder:{root}", "--sheet", str(sheet), "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert "9 images, 3 classes" in shown
    assert "5x7 to 7x7" in shown
    pixels = np.concatenate(
        [s["image"].reshape(-1, 3) for s in map(open_source(f"folder:{root}").__getitem__, range(9))]
    )
    assert ", ".join(f"{v:.4f}" for v in pixels.mean(0) / 255) in shown
    with Image.open(sheet) as image:
        assert image.width > 800
    assert '"images": 9' in figures.read_text()
    assert main(["data", "write", f"folder:{root}", "mine", "--data-dir", str(tmp_path / "t")]) == 0
    assert "--data tfds:mine" in capsys.readouterr().out
    (root / "train" / "a" / "0.png").write_bytes(b"nonsense")
    assert main(["data", "show", f"folder:{root}"]) == 1
    assert "damaged: cannot read image" in capsys.readouterr().out


def test_mistakes_at_the_command_line_are_one_sentence(tmp_path, capsys):
    for arguments in (["show", "folder:/nowhere"], ["write", "digits", "Bad-Name", "--data-dir", str(tmp_path)]):
        assert main(["data", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_images_of_several_sizes_cannot_share_a_batch(tmp_path):
    source = open_source(f"folder:{make_folder(tmp_path)}")
    with pytest.raises(UserError, match="cannot share a batch"):
        list(evaluation_batches(source, evaluation_transform(None, None), batch_size=4))
