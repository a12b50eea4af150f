"""Which folders are splits, which are classes, and which images a split is."""

import os

import numpy as np
import pytest
from PIL import Image

from resnet_flax.__main__ import main
from resnet_flax.data import SourceOptions, open_source
from resnet_flax.data.splits import choose, split_of
from resnet_flax.errors import UserError


def fill(root, *folders, images=2):
    """Empty pixels as PNG files: `images` of them in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            Image.new("L", (2, 2), 40 * number).save(root / folder / f"{number}.png")
    return root


def splits(*names, classes=("ant", "bee", "cow")):
    return [f"{name}/{class_}" for name in names for class_ in classes]


THREE = ("ant", "bee", "cow")
LAYOUTS = {
    # name: (folders, {split: (classes, images)} or the refusal)
    "train, val, test": (splits("train", "val", "test"), {"train": 6, "val": 6, "test": 6}),
    "Training, Testing": (splits("Training", "Testing"), {"train": 6, "val": 6, "test": 6}),
    "TRAIN, VAL": (splits("TRAIN", "VAL"), {"train": 6, "val": 6, "test": 6}),
    "Train, Valid, Test": (splits("Train", "Valid", "Test"), {"train": 6, "val": 6, "test": 6}),
    "trainset, testset": (splits("trainset", "testset"), {"train": 6, "test": 6}),
    "seg_train/seg_train": (
        [*splits("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
        {"train": 6, "test": 6},
    ),
    "train_images, dev_images": (splits("train_images", "dev_images"), {"train": 6, "val": 6}),
    "train2017, val2017": (splits("train2017", "val2017"), {"train": 6, "val": 6}),
    "Training set, evaluation set": (splits("Training set", "evaluation set"), {"train": 6, "val": 6}),
    "trainImages, testImages": (splits("trainImages", "testImages"), {"train": 6, "test": 6}),
    "01-train, 02-holdout": (splits("01-train", "02-holdout"), {"train": 6, "test": 6}),
    "wrapped": (splits("chest/train", "chest/val"), {"train": 6, "val": 6}),
    "wrapped twice": (splits("chest/chest/train", "chest/chest/val"), {"train": 6, "val": 6}),
    "wrapped classes": (["birds/ant", "birds/bee", "birds/cow"], {"train": 3, "test": 3}),
    "classes": (list(THREE), {"train": 3, "test": 3}),
    "only train": (splits("train"), {"train": 3, "test": 3}),
    "unlabelled test": ([*splits("train", "val"), "test"], {"train": 6, "val": 6, "test": 6}),
    "an unnamed folder beside": ([*splits("train", "val"), "annotations"], {"train": 6, "val": 6}),
    "nested images": (["ant/images", "bee/images", "cow/images"], {"train": 3, "test": 3}),
    "a split in two places": (
        splits("train", "valid", "validation"),
        "several folders for the split 'val': valid, val",
    ),
    "the canonical name wins": (splits("train", "val", "valid"), {"val": 6}),
    "images without classes": (["train", "test"], "train has 2 images and no class folders"),
    "no training split": (splits("val", "test"), "holds test, val and no training split"),
    "split inside class": (splits(*THREE, classes=("train", "test")), "each of them holds the folders test, train"),
    "years": (splits("2023", "2024"), "each of them holds the folders ant, bee, cow"),
    "other languages": (splits("entrenamiento", "prueba"), "each of them holds the folders ant, bee, cow"),
    "split or class": ([*splits("train"), "bus"], "train may be a split or a class"),
    "flat val beside test": ([*splits("train", "test"), "val"], "is not used in its place unasked"),
}
CLASSES = {
    # Class names that contain a word for a split.
    ("trainers", "testudo", "valley"): ("testudo", "trainers", "valley"),
    ("train", "bus", "car"): ("bus", "car", "train"),
    ("test_tube", "beaker"): ("beaker", "test_tube"),
    ("train", "test", "bus"): ("bus", "test", "train"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    folders, expected = LAYOUTS[name]
    root = fill(tmp_path / "data", *folders)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            open_source(f"folder:{root}", "val")
        return
    for split, images in expected.items():
        source = open_source(f"folder:{root}", split)
        assert source.class_names == THREE
        assert len(source) == images
        assert np.bincount(source.labels).tolist() == [images // 3] * 3


@pytest.mark.parametrize("folders", CLASSES, ids=str)
def test_classes_whose_names_have_a_word_for_a_split(tmp_path, folders):
    fill(tmp_path, *folders)
    assert open_source(f"folder:{tmp_path}").class_names == CLASSES[folders]


@pytest.mark.parametrize(
    ("name", "split"),
    [("x_train.v2", "train"), ("train_val", "train"), ("VALIDATION", "val"), ("eval", "val"), ("test1", "test")]
    + [(name, None) for name in ("strain", "contest", "latest", "devices", "evaluator", "validity", "train_test", "")],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_three_splits_stay_three(tmp_path):
    root = fill(tmp_path, *splits("train"), images=5)
    fill(fill(root, *splits("val"), images=2), *splits("test"), images=3)
    sizes = {
        split: len(open_source(f"folder:{root}", split)) for split in ("train", "val", "validation", "dev", "test")
    }
    assert sizes == {"train": 15, "val": 6, "validation": 6, "dev": 6, "test": 9}
    source = open_source(f"folder:{root}", "val")
    assert (source.split, source.origin, source.splits) == ("val", str(root / "val"), ("train", "val", "test"))
    by_test = SourceOptions(split_by="test")
    assert len(open_source(f"folder:{root}", "val", options=by_test)) == 9
    by_fraction = SourceOptions(split_by=0.4)
    parts = [open_source(f"folder:{root}", split, options=by_fraction) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [9, 6, 9]
    assert not set(parts[0].paths) & set(parts[1].paths)
    assert "40% of each class of" in parts[1].origin


def test_training_looks_into_no_test_set(tmp_path, monkeypatch):
    root = fill(tmp_path, *splits("train", "val", "test"))
    scandir = os.scandir

    def guarded(path):
        assert "test" not in os.fspath(path)[len(str(root)) :], f"{path} was listed"
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert len(open_source(f"folder:{root}", "train")) == len(open_source(f"folder:{root}", "val")) == 6
    with pytest.raises(AssertionError, match="was listed"):  # the guard sees what it is for
        open_source(f"folder:{root}", "test")


def test_what_is_assumed_is_noted(tmp_path, capsys):
    root = fill(tmp_path, *splits("x/train", "x/test"), "x/other", "x/__MACOSX/ant")
    (note_of_root, others), assumed = (open_source(f"folder:{root}", split).notes() for split in ("train", "val"))
    assert note_of_root == f"{root} holds only x, which is taken for a wrapper and not for one class"
    assert others == f"ignored beside the splits in {root / 'x'}: other"
    assert assumed[-1] == f"{root / 'x'} has no validation split with labels; its test split is used"
    assert main(["data", "show", f"folder:{root}", "--split", "val"]) == 0
    shown = capsys.readouterr().out
    assert f"folder:{root} test: 6 images, 3 classes (from {root / 'x' / 'test'})" in shown
    assert f"note: {assumed[-1]}" in shown


def test_every_split_is_written(tmp_path, capsys):
    root = fill(tmp_path / "data", *splits("train", "val", "test"))
    assert main(["data", "write", f"folder:{root}", "mine", "--data-dir", str(tmp_path / "t")]) == 0
    assert [len(open_source("tfds:mine", split, data_dir=tmp_path / "t")) for split in ("train", "val", "test")] == [
        6
    ] * 3
    assert open_source("tfds:mine", "val", data_dir=tmp_path / "t").origin.startswith("split val of tfds:mine in")
    assert "val: 6 images" in capsys.readouterr().out


def test_links_in_circles(tmp_path):
    root = fill(tmp_path / "data", "ant", "bee")
    (root / "loop").symlink_to(root)
    (root / "ant" / "up").symlink_to(root / "ant")
    (root / "ant" / "whole").symlink_to(root)
    (root / "ant" / "more").mkdir()
    (root / "ant" / "more" / "back").symlink_to(root / "ant" / "more")
    (root / "self").symlink_to(root / "self")
    source = open_source(f"folder:{root}")
    assert (source.class_names, len(source)) == (("ant", "bee"), 2)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs Linux's /proc")
def test_the_kernels_files_are_not_searched(tmp_path):
    """Among them are links to the root of every process."""
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "link").symlink_to("/proc/self")
    for folder in ("/proc", tmp_path):
        with pytest.raises(UserError, match="cannot list .*: it is of the kernel's /proc, which has no images"):
            open_source(f"folder:{folder}")


@pytest.mark.parametrize(
    ("content", "suffix", "names", "labels"),
    [
        ("cow\nant\nbee\n", ".txt", ("cow", "ant", "bee"), [0, 0, 1, 1, 2, 2]),
        ("ant\tinsect\nbee\tinsect\ncow\tmammal", ".txt", ("insect", "mammal"), [0, 0, 0, 0, 1, 1]),
        ('{"ant": 1, "bee": 0, "cow": 1}', ".json", ("bee", "ant+cow"), [0, 0, 1, 1, 1, 1]),
        ('["bee", "cow"]', ".json", ("bee", "cow"), [0, 0, 1, 1]),
        ('{"ant": "x", "bee": "y", "cow": "x"}', ".json", ("x", "y"), [0, 0, 0, 0, 1, 1]),
    ],
)
def test_class_lists(tmp_path, content, suffix, names, labels):
    root = fill(tmp_path / "data", *splits("train", "val"))
    file = tmp_path / f"classes{suffix}"
    file.write_text(content)
    source = open_source(f"folder:{root}", options=SourceOptions(classes=file))
    assert (source.class_names, source.labels.tolist()) == (names, labels)
    assert ("ignored, not in" in str(source.notes())) == ("ant" not in content)


@pytest.mark.parametrize("content", ["", "[1, 2]", "[", '{"ant": 0, "bee": 2}', '["ant", "ant"]', "3", "{}"])
def test_unusable_class_lists(tmp_path, content):
    root = fill(tmp_path / "data", "ant", "bee")
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=r"c\.json is n"):
        open_source(f"folder:{root}", options=SourceOptions(classes=tmp_path / "c.json"))


def test_empty_classes_on_request(tmp_path):
    root = fill(tmp_path, *splits("train", "val"))
    fill(root, "train/dog", images=0)
    with pytest.raises(UserError, match="no images of class dog.*--allow-empty"):
        open_source(f"folder:{root}")
    source = open_source(f"folder:{root}", options=SourceOptions(allow_empty=True))
    assert (source.num_classes, "without images: dog" in source.notes()) == (4, True)


def test_choices_need_no_disk():
    asked = []

    def usable(split):
        asked.append(split)
        return True

    assert choose("train", ("train", "val", "test"), name="x", usable=usable).stored == "train"
    assert choose("val", ("train", "val", "test"), name="x", usable=usable).stored == "val"
    assert set(asked) == {"val"}
    with pytest.raises(UserError, match="--split-by test needs a test split"):
        choose("val", ("train", "val"), "test", name="x")


def test_folders_in_a_class_are_told(tmp_path):
    for path in ("animal/cat/0.png", "animal/dog/1.png", "thing/images/2.png", "thing/3.png"):
        (tmp_path / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "train" / path)
    source = open_source(f"folder:{tmp_path}", options=SourceOptions(split_by=0.5))
    assert source.class_names == ("animal", "thing")
    assert "one class each, subfolders included: animal (cat, dog)" in source.notes()


LABELS = np.arange(40) % 4


@pytest.mark.parametrize("split_by", [None, "test", 0.25])
@pytest.mark.parametrize("stored", [("train",), ("train", "val"), ("train", "test"), ("train", "val", "test")])
@pytest.mark.parametrize("unusable", [(), ("val",), ("test",), ("val", "test")])
def test_nothing_that_is_evaluated_on_is_trained_on(split_by, stored, unusable):
    def images(split):
        choice = choose(split, stored, split_by, name="x", usable=lambda name: name not in unusable)
        return {(choice.stored, index) for index in choice.indices(LABELS).tolist()}

    for split in ("val", "test"):
        try:
            seen, trained = images(split), images("train")
        except UserError:
            continue
        assert seen
        assert not seen & trained, split


def test_a_validation_split_without_classes_is_told(tmp_path):
    root = fill(tmp_path, *splits("train"), "val", images=5)
    sources = [open_source(f"folder:{root}", split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [12, 3]
    assert not set(sources[0].paths) & set(sources[1].paths)
    for source in sources:
        assert any(
            "its validation split cannot be used" in note and "is held out instead" in note for note in source.notes()
        )


def test_of_several_folders_for_a_split_those_unused_are_told(tmp_path):
    root = fill(tmp_path, *splits("train", "val", "validation"))
    source = open_source(f"folder:{root}", "val")
    assert source.origin == str(root / "val")
    assert f"ignored beside {root / 'val'}: validation" in source.notes()
