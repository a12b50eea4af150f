"""Parquet files: which columns are taken, the copies with random access, and what is refused."""

import json
import os

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from resnet_flax.__main__ import main
from resnet_flax.data import CorruptImage, SourceOptions, open_source
from resnet_flax.errors import UserError
from tests.resnet_flax.data.test_wds import png, red


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


def write(path, metadata=None, **columns):
    table = pa.table(
        {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    )
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def images(*values):
    return pa.array([png(value) for value in values], pa.binary())


def files(*values):
    return pa.array([{"bytes": png(value), "path": f"{value}.png"} for value in values])


def hf(**features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


def opened(path, split="train", **options):
    return open_source(f"parquet:{path}", split, options=SourceOptions(**options))


CLASSES = {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}


def test_columns_of_bytes_and_integers_or_strings(tmp_path):
    write(tmp_path / "train-0.parquet", photo=images(5, 6, 7), label=[2, 0, 2], size=[1.0, 2.0, 3.0])
    write(tmp_path / "train-1.parquet", photo=images(8), label=[1], size=[1.0])
    write(tmp_path / "test.parquet", photo=images(9), label=[1], size=[1.0])
    source = opened(tmp_path)
    assert (source.class_names, source.labels.tolist(), red(source)) == (("0", "1", "2"), [2, 0, 2, 1], [5, 6, 7, 8])
    assert "are the values of its column label, which is not a class label by its type" in source.notes()[0]
    assert red(opened(tmp_path, "test")) == [9]
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    write(tmp_path / "words.parquet", picture=images(5, 6, 7).cast(pa.large_binary()), kind=words)
    source = opened(tmp_path / "words.parquet", "test", split_by=0.5)
    assert (source.class_names, len(source)) == (("a", "b"), 1)


def test_class_numbers_without_images_are_told(tmp_path):
    write(tmp_path / "train.parquet", photo=images(5, 6, 7), label=[1, 3, 1])
    write(tmp_path / "test.parquet", photo=images(8), label=[3])
    note = "labels are class numbers, and 2 of the 4 classes have no training images: 0, 2"
    for split in ("train", "test"):
        assert note in opened(tmp_path, split).notes()


def test_columns_as_hugging_face_has_them(tmp_path):
    features = hf(image={"_type": "Image"}, label=CLASSES, id={"dtype": "int64", "_type": "Value"})
    write(tmp_path / "train.parquet", features, image=files(1, 2), label=[0, 1], id=[7, 8])
    write(tmp_path / "validation.parquet", features, image=files(3, 4), label=[1, 0], id=[7, 8])
    source = opened(tmp_path, "val")
    assert (source.class_names, source.labels.tolist(), red(source)) == (("cat", "dog", "emu"), [1, 0], [3, 4])
    assert not any("the values of its column" in note for note in source.notes())
    other = hf(image={"_type": "Image"}, label={**CLASSES, "names": ["dog", "cat", "emu"]})
    write(tmp_path / "validation.parquet", other, image=files(3), label=[1])
    with pytest.raises(UserError, match="class 0 of its split val is 'dog', and the training set calls it 'cat'"):
        opened(tmp_path, "val")
    write(tmp_path / "train-2.parquet", other, image=files(3), label=[1])
    with pytest.raises(UserError, match="train.parquet has other columns or class names than .*train-2.parquet"):
        opened(f"{tmp_path}/train*")


@pytest.mark.parametrize(
    "metadata", ["[", "[]", '{"info": []}', '{"info": {"features": {"label": {"names": 3}}}}', "\xff"]
)
def test_metadata_of_another_form_is_no_metadata(tmp_path, metadata):
    write(tmp_path / "a.parquet", {"huggingface": metadata.encode("latin-1")}, image=files(1, 2), label=[0, 1])
    assert opened(tmp_path, split_by=0.5).class_names == ("0", "1")


def test_images_are_copied_once_and_again_if_the_file_changes(tmp_path, own_cache):
    path = write(tmp_path / "a.parquet", image=images(*range(5)), label=[0] * 5)
    assert own_cache.joinpath("x").parent.name in opened(path).notes()[-1]
    (copy,) = own_cache.iterdir()
    made = copy.stat().st_mtime_ns
    assert sorted(red(opened(path)) + red(opened(path, "test"))) == [0, 1, 2, 3, 4]
    assert copy.stat().st_mtime_ns == made
    write(path, image=images(*range(50, 55)), label=[0] * 5)
    assert min(red(opened(path))) >= 50
    assert len(list(own_cache.iterdir())) == 2
    os.utime(path, ns=(0, 0))  # another file of the same size
    opened(path)
    assert len(list(own_cache.iterdir())) == 3


def test_only_what_is_read_is_copied(tmp_path, own_cache):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.parquet", image=images(1, 2), label=[0, 1])
    opened(tmp_path, "val")
    assert len(list(own_cache.iterdir())) == 1


def test_an_image_without_bytes_is_damaged(tmp_path):
    rows = pa.array([{"bytes": png(1), "path": "a"}, {"bytes": None, "path": "b.png"}, None])
    path = write(tmp_path / "a.parquet", image=rows, label=[0, 1, 2])
    source = opened(path)
    assert source[0]["image"].shape == (2, 3, 3)
    for index in (1, 2):
        with pytest.raises(CorruptImage, match=f"image {index} of .*a.parquet: the file has no bytes for it"):
            source[index]


TABLES = {
    "no image": ({"label": [0]}, "has no column of images; its columns are label \\(integer\\)"),
    "two images": (
        {"a": images(0), "b": images(1), "label": [0]},
        "has several columns of images, a, b; choose one with --image",
    ),
    "no label": ({"image": images(0)}, "has no labels"),
    "unnamed": (
        {"image": images(0), "x": [1], "y": ["a"]},
        r"no column that is the label by its type or name; it has image \(bytes\), x \(integer\), y \(string\); na",
    ),
    "two labels": (
        {"image": images(0), "label": [1], "target": ["a"]},
        "several columns that may be the label, label, target; choose one with --label",
    ),
    "missing label": ({"image": images(0, 1), "label": [1, None]}, "no label in 1 of 2 rows"),
    "no rows": ({"image": images(), "label": pa.array([], pa.int64())}, "has no images|has no labels"),
    "a float": ({"image": images(0), "label": [1.5]}, r"has no labels: it has image \(bytes\), label \(double\)"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_are_no_labelled_images(tmp_path, kind):
    columns, message = TABLES[kind]
    with pytest.raises(UserError, match=message):
        opened(write(tmp_path / "a.parquet", **columns))


def test_several_class_labels_need_a_choice(tmp_path):
    path = write(tmp_path / "a.parquet", hf(fine=CLASSES, coarse=CLASSES), image=files(1), fine=[0], coarse=[2])
    with pytest.raises(UserError, match="several columns that may be the label, fine, coarse; choose one with --label"):
        opened(path)
    source = opened(path, label="coarse", image="image")
    assert source.labels.tolist() == [2]
    with pytest.raises(UserError, match="--label x is not a column of class labels"):
        opened(path, label="x")
    with pytest.raises(UserError, match="--image fine is not a column of images"):
        opened(path, label="fine", image="fine")


@pytest.mark.parametrize("kind", ["noise", "empty", "cut", "pipe", "folder"])
def test_files_that_are_no_parquet(tmp_path, kind, capsys):
    path = write(tmp_path / "a.parquet", image=images(1), label=[0])
    content = path.read_bytes()
    path.unlink()
    made = {
        "noise": lambda: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(content[:-9]),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    made[kind]()
    assert main(["data", "show", f"parquet:{path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.rglob("*.arrow"))
