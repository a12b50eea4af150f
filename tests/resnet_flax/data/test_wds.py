"""webdataset's tar files: which samples are in them, where the index is kept, and what is refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_flax.__main__ import main
from resnet_flax.data import CorruptImage, SourceOptions, open_source
from resnet_flax.data import tar_index as module
from resnet_flax.data.tar_index import index_of
from resnet_flax.errors import UserError


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(*labels, ending="cls"):
    images = [(f"{number:04d}.png", png(number)) for number in range(len(labels))]
    return images + [(f"{number:04d}.{ending}", str(label).encode()) for number, label in enumerate(labels)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path / "cache"))


def red(source):
    return [int(source[index]["image"][0, 0, 0]) for index in range(len(source))]


def test_a_sample_is_the_files_of_one_name_in_any_order(tmp_path):
    long = "a" * 90 + "/" + "b" * 90  # in a header of its own
    files = [
        ("x/0.cls", b"1\n"),
        ("y/0.PNG", png(2)),
        (f"{long}.seg.png.txt", b"not one"),
        (f"{long}.png", png(3)),
        ("x/0.png", png(1)),
        ("y/0.cls", b"0"),
        ("x/._0.png", b"of macOS"),
        ("__MACOSX/0.png", b"of macOS too"),
        ("only.txt", b"no image"),
        (f"{long}.cls", b"1"),
    ]
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        make_tar(tmp_path / "a.tar", files, format=kind)
        source = open_source(f"wds:{tmp_path / 'a.tar'}", options=SourceOptions(split_by=0.5))
        whole = [source, open_source(f"wds:{tmp_path / 'a.tar'}", "val", options=SourceOptions(split_by=0.5))]
        assert sorted(red(whole[0]) + red(whole[1])) == [1, 2, 3]
    index = index_of(tmp_path / "a.tar", None, None)
    assert index.labels == [1, 0, 1]
    data = (tmp_path / "a.tar").read_bytes()
    assert [data[start : start + length] for start, length in index.images] == [png(1), png(2), png(3)]


def test_labels_and_names_come_from_cls_or_json(tmp_path):
    rows = [{"label": 1, "class": "dog"}, {"label": 0, "class": "cat"}, {"label": 1, "class": "dog", "fine": 7}]
    make_tar(tmp_path / "train.tar", samples(*map(json.dumps, rows), ending="json"))
    make_tar(tmp_path / "val.tar", [*samples(1), ("0000.json", b'{"label": "dog", "fine": 3}')])
    train, val = (open_source(f"wds:{tmp_path}", split) for split in ("train", "val"))
    assert (train.class_names, train.labels.tolist(), red(train)) == (("cat", "dog"), [1, 0, 1], [0, 1, 2])
    assert (val.class_names, val.labels.tolist()) == (("cat", "dog"), [1])
    make_tar(tmp_path / "words.tar", samples("dog", "cat", "emu"))
    words = open_source(f"wds:{tmp_path / 'words.tar'}")
    assert words.class_names == ("cat", "dog", "emu")
    fine = SourceOptions(label="fine")
    (tmp_path / "words.tar").unlink()
    with pytest.raises(UserError, match="3 images and 1 labels: 0000 has none"):
        open_source(f"wds:{tmp_path}", options=fine)


def test_the_ending_of_the_images_can_be_chosen(tmp_path):
    files = [(f"{i}.{side}.png", png(i + shift)) for i in range(4) for side, shift in (("left", 0), ("right", 10))]
    path = make_tar(tmp_path / "train.tar", [*files, *((f"{i}.cls2", b"0") for i in range(4))])
    with pytest.raises(UserError, match="0 in .* has several images, left.png, right.png; choose an ending with --im"):
        open_source(f"wds:{path}")
    source = open_source(f"wds:{path}", options=SourceOptions(image="right.png", label="cls2", split_by=0.25))
    assert set(red(source)) < {10, 11, 12, 13}


def test_the_index_is_kept_beside_the_file_and_made_again_when_that_changes(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "train.tar", samples(0, 1))
    open_source(f"wds:{path}")
    (kept,) = tmp_path.glob(".train.tar.*.index")
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_index", lambda *_: pytest.fail("it is not kept"))
        source = open_source(f"wds:{path}", options=SourceOptions(split_by=0.5))
    make_tar(path, samples(0, 1, 2))
    with pytest.raises(CorruptImage, match=r"0 of .*train.tar \(at byte 512\): the file has changed"):
        source[0]
    assert len(index_of(path, None, None).images) == 3
    for damage in ("[" * 100_000, "{}", kept.read_text().replace("[512,", "[99999999,"), "\0", ""):
        kept.write_text(damage)
        assert index_of(path, None, None).images[0] == (512, len(png()))


def test_the_index_is_in_the_cache_if_the_folder_cannot_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    path = make_tar(folder / "train.tar", samples(0, 1))
    monkeypatch.setattr(module.os, "access", lambda place, mode: Path(place) != folder)
    open_source(f"wds:{path}")
    assert [each.name for each in folder.iterdir()] == ["train.tar"]
    assert len(list((tmp_path / "cache" / "wds").glob("*.index"))) == 1
    monkeypatch.setattr(module, "read_index", lambda *_: pytest.fail("it is not kept"))
    open_source(f"wds:{path}")


def truncated(path, length):
    data = path.read_bytes()
    path.write_bytes(data[:length])


def joined(path):
    path.write_bytes(path.read_bytes() * 2)


def linked(path):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("9.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def packed(path):
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


def with_files(*files):
    return lambda path: make_tar(path, [*samples(0, 1), *files])


BAD = {
    "packed": (packed, r"is compressed \(gzip\), which has no random access; unpack it to a .tar"),
    "packed members": (
        lambda path: make_tar(path, [("0.png.gz", b"\x1f\x8b"), ("0.cls", b"0")]),
        "0.png.gz in .* is compressed; store images as they are",
    ),
    "no images": (lambda path: make_tar(path, [("0.cls", b"0")]), "has no images; its samples have cls"),
    "no files": (lambda path: make_tar(path, []), "has no images; its samples have no files"),
    "no labels": (lambda path: make_tar(path, [("0.png", png())]), "has no labels"),
    "one without": (with_files(("9.png", png())), "3 images and 2 labels: 9 has none"),
    "no image": (with_files(("9.cls", b"0")), "9 in .* has a label and no image; its files are cls"),
    "two kinds": (with_files(("9.png", png()), ("9.cls", b"cat")), "are integers and strings"),
    "two labels": (with_files(("0000.json", b'{"label": 1}')), "two labels: 0 in .cls and 1 in .json; give --label"),
    "other names": (
        lambda path: make_tar(
            path, samples(*(json.dumps({"label": 0, "class": name}) for name in ("cat", "dog")), ending="json")
        ),
        "the class 0 is 'cat' and 'dog' in",
    ),
    "keys": (
        lambda path: make_tar(path, samples('{"target": 1, "category": 2}', ending="json")),
        "several keys that may be the label, target, category; give --label",
    ),
    "a list": (lambda path: make_tar(path, samples('{"label": [1]}', ending="json")), r"is '\[1\]', not an integer"),
    "a large number": (
        lambda path: make_tar(path, samples(json.dumps({"label": 10**30}), ending="json")),
        "has the label 1000000000000000000000000000000, which is not a class number",
    ),
    "no JSON": (lambda path: make_tar(path, samples("{", ending="json")), "0000.json in .* is not JSON"),
    "brackets": (lambda path: make_tar(path, samples("[" * 99_999, ending="json")), "0000.json in .* is not JSON"),
    "no UTF-8": (with_files(("9.png", png()), ("9.cls", b"\xff")), "9.cls in .* is not text in UTF-8"),
    "a large label": (with_files(("9.png", png()), ("9.cls", bytes(2**20 + 1))), "has 1,048,577 bytes, more than"),
    "twice": (with_files(("0000.PNG", png())), "has 0000.PNG twice"),
    "a link": (linked, "9.png in .* is a link or a special file"),
    "joined": (joined, "has more after its end, as if tar files were joined"),
    "cut in a file": (lambda path: truncated(path, 1024 + 100), "cut short|damaged"),
    "cut in a header": (lambda path: truncated(path, 1100), "cut short|damaged"),
    "cut at the end": (lambda path: truncated(path, 4096), "cut short: it lacks the blocks of zeros"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a tar file, or is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a tar file, or is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_tar_file_of_labelled_images(tmp_path, kind, capsys):
    breaking, message = BAD[kind]
    path = make_tar(tmp_path / "train.tar", samples(0, 1))
    breaking(path)
    with pytest.raises(UserError, match=message):
        open_source(f"wds:{path}")
    assert main(["data", "show", f"wds:{path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_of_a_set_must_agree(tmp_path):
    make_tar(tmp_path / "train-0.tar", samples('{"label": 0, "class": "cat"}', ending="json"))
    make_tar(tmp_path / "train-1.tar", samples('{"label": 0, "class": "dog"}', ending="json"))
    with pytest.raises(UserError, match="class names of .* differ: class 0 is 'cat', and 'dog' in .*train-1.tar"):
        open_source(f"wds:{tmp_path}")
    make_tar(tmp_path / "train-1.tar", samples("cat"))
    with pytest.raises(UserError, match="are integers in some of its files and strings in others"):
        open_source(f"wds:{tmp_path}")
    make_tar(tmp_path / "train-1.tar", [("0.png", png())])
    with pytest.raises(UserError, match=r"train-1.tar has no labels \(.cls, or label in .json\), and others of"):
        open_source(f"wds:{tmp_path}")


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    make_tar(tmp_path / "train.tar", samples(0, 1, 0, 1))
    make_tar(tmp_path / "test.tar", [("0.png", png())])
    assert open_source(f"wds:{tmp_path}", "test").origin.startswith("20% of each class")
