"""One set of images as a folder, hf, parquet and wds: the same stream, from any step; and labels of every kind."""

import pickle

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("datasets")
from resnet_flax.__main__ import main
from resnet_flax.data import (
    SourceOptions,
    TrainingTransform,
    evaluation_batches,
    evaluation_transform,
    open_source,
    training_batches,
)
from resnet_flax.data.encoded import EncodedSource, Records, label_array
from resnet_flax.data.specs import WRITABLE
from resnet_flax.errors import UserError

RNG = np.random.default_rng(0)
FORMS = sorted({*WRITABLE} - {"tfds"})


def make_folder(root, *, splits=("train", "val"), classes=("10", "2", "a b"), count=5, kinds=("png", "jpg", "bmp")):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(RNG.integers(0, 256, (20 + number, 30, 3), np.uint8))
                image.save(root / split / name / f"{number}.{kinds[number % len(kinds)]}")
    return root


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_FLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """{kind: spec} of one set of images."""
    root = tmp_path_factory.mktemp("sets")
    make_folder(root / "folder")
    for form in FORMS:
        assert main(["data", "write", f"folder:{root / 'folder'}", str(root / form), "--format", form]) == 0
    return {form: f"{form}:{root / form}" for form in ("folder", *FORMS)}


def training(source, start=0, workers=0):
    transform = TrainingTransform(16)
    batches = training_batches(source, transform, batch_size=4, seed=3, start_step=start, workers=workers)
    rows = [next(batches) for _ in range(7 - start)]
    batches.close()
    return rows


def assert_same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            np.testing.assert_array_equal(row[name], other[name])


@pytest.mark.parametrize("form", FORMS)
def test_the_stream_is_the_folders(specs, form):
    for split in ("train", "val"):
        folder, source = (open_source(specs[kind], split) for kind in ("folder", form))
        assert (source.class_names, source.split, source.splits) == (folder.class_names, split, ("train", "val"))
        assert source.labels.tolist() == folder.labels.tolist()
        assert source[1]["image"].shape == folder[1]["image"].shape
        transform = evaluation_transform(16, 16)
        assert_same(*(list(evaluation_batches(each, transform, batch_size=4)) for each in (source, folder)))
    folder, source = (open_source(specs[kind]) for kind in ("folder", form))
    expected = training(folder)
    assert_same(training(source), expected)
    assert_same(training(source, start=5), expected[5:])
    assert_same(training(pickle.loads(pickle.dumps(source)), start=2), expected[2:])


def test_worker_processes_read_them(specs):
    expected = training(open_source(specs["folder"]), start=3)
    for form in FORMS:
        assert_same(training(open_source(specs[form]), start=3, workers=1), expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_held_out(specs, form):
    options = SourceOptions(split_by=0.4)
    for split in ("train", "val"):
        folder, source = (open_source(specs[kind], split, options=options) for kind in ("folder", form))
        assert len(source) == (9 if split == "train" else 6)
        for index in range(len(source)):
            assert source[index]["label"] == folder[index]["label"]
            np.testing.assert_array_equal(source[index]["image"], folder[index]["image"])


@pytest.mark.parametrize("form", FORMS)
def test_files_are_kept_byte_for_byte(specs, form):
    folder, source = (open_source(specs[kind]) for kind in ("folder", form))
    for index in range(5):
        stored = folder.encoded(index)
        assert (source.encoded(index) == stored) == stored.startswith((b"\xff\xd8", b"\x89PNG"))


@pytest.mark.parametrize("form", FORMS)
def test_a_set_without_splits_is_held_out_as_the_folder(tmp_path, form):
    root = make_folder(tmp_path / "folder", splits=("train",))
    assert main(["data", "write", f"folder:{root}", str(tmp_path / "out"), "--format", form]) == 0
    assert len(open_source(f"{form}:{tmp_path / 'out'}", "test")) == 3


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_left_of_what_fails(tmp_path, capsys, form):
    root = make_folder(tmp_path / "folder", kinds=("png",))
    arguments = ["data", "write", f"folder:{root}", str(tmp_path / "a" / "out"), "--format", form]
    (root / "val" / "2" / "1.png").write_bytes(b"nonsense")
    assert main(arguments) == 2
    assert not (tmp_path / "a").exists()
    (root / "val" / "2" / "1.png").unlink()
    assert main(arguments) == 0
    assert f"read it with --data {form}:{tmp_path / 'a' / 'out'}\n" in capsys.readouterr().out
    before = sorted(path.name for path in (tmp_path / "a").rglob("*"))
    assert main(arguments) == 2
    assert "out exists; remove it or choose another name" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == before


class Listed(Records):
    """Records of labels alone."""

    def __init__(self, labels, names=None):
        self.labels, self.names = None if labels is None else label_array(labels, "it"), names or {}

    def __len__(self):
        return 0 if self.labels is None else len(self.labels)


def opened(split, options=None, **stored):
    places = {name: f"the {name} files" for name in stored}
    records = {name: (lambda labels=labels: labels) for name, labels in stored.items()}
    return EncodedSource("kind:x", split, records, places, options or SourceOptions())


def test_integers_are_class_numbers_and_strings_are_sorted():
    numbers = opened("train", train=Listed([3, 0, 3]), val=Listed([0]))
    assert (numbers.class_names, numbers.labels.tolist()) == (("0", "1", "2", "3"), [3, 0, 3])
    named = opened("val", train=Listed([1, 0], {0: "cat", 1: "dog", 2: "emu"}), val=Listed([1], {1: "dog"}))
    assert (named.class_names, named.labels.tolist()) == (("cat", "dog", "emu"), [1])
    words = opened("val", train=Listed(["b", "a", "10", "2"]), val=Listed(["b", "2"]))
    assert (words.class_names, words.labels.tolist()) == (("10", "2", "a", "b"), [3, 1])


def test_labels_are_all_integers_or_all_strings():
    assert label_array([3, 1], "it").dtype == np.int64
    assert label_array([3, "a"], "it").tolist() == ["3", "a"]
    assert label_array(["a" * 10**6] + ["b"] * 1000, "it").nbytes < 10**5  # no room for the longest in each
    with pytest.raises(UserError, match="it has the label 99999999999999999999, which is not a class number"):
        label_array([1, 99999999999999999999], "it")


@pytest.mark.parametrize("labels", [None, [-1, -1]])
def test_a_split_without_labels_is_passed_over(labels):
    source = opened("val", train=Listed([0, 1]), val=Listed([0, 1]), test=Listed(labels))
    assert source.origin == "the val files"
    source = opened("test", train=Listed([0, 1, 0, 1]), test=Listed(labels))
    assert source.origin == "20% of each class of the train files, held out with a fixed seed"


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (Listed(None), Listed([0]), "kind:x has no images"),
        (Listed([0, -1]), Listed([0]), "has the label -1; class numbers are 0 and up"),
        (Listed([0, 10**9]), Listed([0]), "has the label 1000000000; .* below 1,000,000"),
        (Listed([0, 1]), Listed([2]), "split val of kind:x has classes that are not in the training set: 2"),
        (
            Listed(["1"]),
            Listed([0]),
            "split val of kind:x are integers, and those of the training set strings",
        ),
        (
            Listed([0]),
            Listed(["a"]),
            "split val of kind:x are strings, and those of the training set integers",
        ),
        (Listed(["a"]), Listed(["b"]), "split val of kind:x has classes that are not in the training set: b"),
        (
            Listed([0, 1], {0: "cat", 1: "dog"}),
            Listed([0, 1], {0: "dog", 1: "cat"}),
            "the class names of kind:x differ: class 0 of its split val is 'dog', and the training set calls it 'cat'",
        ),
        (Listed([0], {0: "cat"}), Listed([0], {0: "cat", 1: "emu"}), "is 'emu', and the training set has no such"),
    ],
)
def test_labels_that_do_not_fit(train, val, message):
    with pytest.raises(UserError, match=message):
        opened("val", train=train, val=val)
