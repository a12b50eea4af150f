"""Images in one folder with their labels in a file: which columns are taken, and what is refused."""

import json

import pytest

from resnet_flax.__main__ import main
from resnet_flax.data import SourceOptions, open_source
from resnet_flax.errors import UserError
from tests.resnet_flax.data.test_wds import png, red


@pytest.fixture
def images(tmp_path):
    """a.png, b.png, c.png and deep/d.png, whose pixels are 1 to 4."""
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "deep/d"), 1):
        (root / f"{name}.png").write_bytes(png(number))
    return root


def opened(images, content, name="labels.csv", split="train", **options):
    file = images.parent / name
    file.write_text(content)
    given = {"split_by": None, "labels": file} | options
    return open_source(f"folder:{images}", split, options=SourceOptions(**given))


def both(images, *arguments, **options):
    """[(pixel, class)] of the training images and those held out of them."""
    sources = [opened(images, *arguments, split=split, **options) for split in ("train", "test")]
    return sorted((p, s.class_names[n]) for s in sources for p, n in zip(red(s), s.labels.tolist(), strict=True))


CATS_AND_DOGS = [(1, "dog"), (2, "cat"), (3, "dog"), (4, "cat")]
ROWS = (("a.png", "dog"), ("b.png", "cat"), ("c.png", "dog"), ("deep/d.png", "cat"))
TABLE = "\n".join(",".join(row) for row in ROWS)
FORMS = {
    "named": ("labels.csv", "file,label\n" + TABLE),
    "no header": ("labels.csv", TABLE + "\n\n"),
    "in another order": ("labels.csv", ",label,image_id\n" + "\n".join(f"7,{label},{file}" for file, label in ROWS)),
    "tabs and spaces": ("labels.tsv", "Image Path\tCategory\n" + "\n".join(f" {a} \t{b}" for a, b in ROWS)),
    "quotes": ("labels.CSV", "file,label\n" + "\n".join(f'"{a}","{b}"' for a, b in ROWS)),
    "identifiers": ("labels.csv", "id,breed\n" + "\n".join(f"{a[:-4]},{b}" for a, b in ROWS)),
    "JSON": ("labels.json", json.dumps([{"file_name": a, "class": b, "size": 3} for a, b in ROWS])),
    "a JSON object": ("labels.json", json.dumps(dict(ROWS))),
    "JSON Lines": ("labels.jsonl", "\n".join(json.dumps({"path": a, "target": b}) for a, b in ROWS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_labels(images, form):
    name, content = FORMS[form]
    assert both(images, content, name) == CATS_AND_DOGS


def test_columns_of_no_known_name_are_the_first_two_with_a_note(images):
    source = opened(images, "x,y,z\na.png,u,1\nb.png,v,2\n")
    assert source.class_names == ("u", "v")
    note = f"of {images.parent / 'labels.csv'} the column 'x' is taken for the file, and 'y' for the label"
    assert source.notes() == [note, f"ignored, not in {images.parent / 'labels.csv'}: 2 images in {images}"]
    assert opened(images, "x,y,z\na.png,u,1\nb.png,v,2\n", label="z").class_names == ("0", "1", "2")
    assert opened(images, "x,y,z\n1,u,a.png\n2,v,b.png\n", image="z", label="y").class_names == ("u", "v")


def test_integers_are_class_numbers(images):
    source = opened(images, "file,label\na.png,10\nb.png,2\n")
    assert (source.num_classes, source.labels.tolist(), source.class_names[10]) == (11, [10, 2], "10")
    assert opened(images, "file,label\na.png,007\nb.png,008\n").class_names == ("007", "008")
    assert opened(images, '{"a.png": 1, "b.png": 0}', "a.json").labels.tolist() == [1, 0]


def test_splits_are_those_of_a_column(images):
    content = "file,label,split\na.png,0,train\nb.png,1,Training\nc.png,1,valid\ndeep/d.png,0,test\n"
    for split, pixels in (("train", [1, 2]), ("val", [3]), ("test", [4])):
        source = opened(images, content, split=split)
        assert (red(source), source.splits, source.num_classes) == (pixels, ("train", "val", "test"), 2)
    assert source.origin == f"{images}, by {images.parent / 'labels.csv'}, split test"


def test_a_class_list_chooses_orders_and_renames_labels(images):
    classes = images.parent / "classes.json"
    classes.write_text('{"dog": "hound", "cat": "feline"}')
    assert both(images, TABLE, classes=classes) == [(1, "hound"), (2, "feline"), (3, "hound"), (4, "feline")]
    assert opened(images, TABLE, classes=classes).class_names == ("hound", "feline")
    classes.write_text('["cat"]')
    source = opened(images, TABLE, classes=classes, split_by=0.5)
    assert "ignored, not in " in source.notes()[0]
    assert source.class_names == ("cat",)
    classes.write_text('{"3": "c", "1": "a"}')
    assert opened(images, "a.png,3\nb.png,1", classes=classes).labels.tolist() == [0, 1]


BAD = {
    "no such image": ("file,label\nx.png,1\n", "labels.csv names x.png, but in .*images there is no such image"),
    "outside": ("file,label\n../images/a.png,1\n", "there is no such image"),
    "twice": ("file,label\na.png,1\n./a.png,1\n", "labels.csv has two rows for .*a.png"),
    "no label": (
        "file,label\na.png,\n",
        "row 1 of .* has the file 'a.png' and the label ''; both are needed",
    ),
    "one column": ("file\na.png\n", "has the column file alone; a row needs a file and a label"),
    "ragged": ("file,label\na.png,1,2\n", "row 2 of .*labels.csv has 3 columns, and the first 2"),
    "two of a name": ("file,file\na.png,1\n", "has two columns of one name: file, file"),
    "two labels": (
        "file,label,class\na.png,1,2\n",
        "several columns that may be it, label, class; choose one with --",
    ),
    "empty": ("", "has no rows"),
    "header alone": ("file,label\n", "has no rows"),
    "quote": ('file,label\n"a.png,1\n', "cannot be read as a table"),
    "a split": ("file,label,split\na.png,1,fold1\n", "has the split 'fold1'; splits are train, val"),
    "no training": ("file,label,split\na.png,1,test\n", "has no images for training"),
    "negative": ("file,label\na.png,-1\n", "has the label -1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_file_of_labels(images, kind):
    content, message = BAD[kind]
    with pytest.raises(UserError, match=message):
        opened(images, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a.png,1", r"must end in .csv, .tsv, .json or .jsonl"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 99_999, "is not JSON"),
        ("a.json", "3", "must have objects with a file and a label, or be an object {file: label}"),
        ("a.jsonl", "[1]\n", "must have objects with a file and a label"),
        ("a.json", '[{"file": 3, "label": 1}]', "has the file 3 and the label 1; both are needed"),
        ("a.json", '{"a.png": 1.5}', "the label 1.5; both are needed"),
        ("a.json", '{"a.png": true}', "the label True; both are needed"),
    ],
)
def test_what_is_no_json_of_labels(images, name, content, message):
    with pytest.raises(UserError, match=message):
        opened(images, content, name)


def test_options_that_need_a_file_of_labels(images, capsys):
    for option in ("--image", "--label"):
        assert main(["data", "show", f"folder:{images}", option, "x"]) == 2
        assert capsys.readouterr().err == (
            f"error: --image and --label are columns of the file of labels (--labels FILE) for folder:{images}\n"
        )
    assert main(["data", "show", "digits", "--labels", "x.csv"]) == 2
    assert capsys.readouterr().err == "error: --labels is for folder:DIR; digits has its own\n"
    assert main(["data", "show", f"folder:{images / 'none'}", "--labels", "x.csv"]) == 2
    assert "no directory" in capsys.readouterr().err
    assert main(["data", "show", f"folder:{images}", "--labels", str(images)]) == 2
    assert "cannot read" in capsys.readouterr().err
