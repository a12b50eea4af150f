"""Hugging Face's data sets: directories, splits, names on the hub, and what is refused."""

import json
import os
from unittest.mock import MagicMock

import pytest

datasets = pytest.importorskip("datasets")

from resnet_flax.__main__ import main
from resnet_flax.data import SourceOptions, open_source
from resnet_flax.data import hf as module
from resnet_flax.errors import UserError
from tests.resnet_flax.data.test_wds import png, red

IMAGE, CLASSES = datasets.Image(), datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def dataset(values, features=None, **columns):
    features = features or {"image": IMAGE, "label": CLASSES}
    rows = {"image": [{"bytes": png(value), "path": None} for value in values]} if "image" in features else {}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


def save(path, **splits):
    with module._quiet():
        datasets.DatasetDict(splits).save_to_disk(str(path))
    return path


def opened(path, split="train", **options):
    return open_source(f"hf:{path}", split, options=SourceOptions(**options))


def test_what_save_to_disk_wrote(tmp_path):
    train, test = dataset([1, 2, 3], label=[0, 1, 1]), dataset([4, 5], label=[1, 0])
    path = save(tmp_path / "a", train=train.shuffle(seed=1), validation=test, extra=test)
    source = opened(path)
    assert (source.class_names, source.splits) == (("cat", "dog"), ("train", "val"))
    assert sorted(zip(red(source), source.labels.tolist(), strict=True)) == [(1, 0), (2, 1), (3, 1)]
    assert source.notes() == ["ignored, of no split by their names: extra"]
    assert red(opened(path, "val")) == [4, 5]
    alone = opened(f"{path}:validation", split_by=None)
    assert (alone.origin, alone.splits) == (
        f"the split validation of {path} without the held-out 20% of each class",
        ("train", "test"),
    )
    with pytest.raises(UserError, match="no split 'nothing'; .* has the splits train, validation, extra"):
        opened(f"{path}:nothing")


def test_one_dataset_and_selected_rows(tmp_path):
    with module._quiet():
        dataset(range(6), label=[0, 1] * 3).select([5, 1, 3, 0]).save_to_disk(str(tmp_path / "a"))
    sources = [opened(tmp_path / "a", split, split_by=0.3) for split in ("train", "val")]
    found = [pair for source in sources for pair in zip(red(source), source.labels.tolist(), strict=True)]
    assert sorted(found) == [(0, 0), (1, 1), (3, 1), (5, 1)]
    with pytest.raises(UserError, match="there is no split 'train'; .* has no splits"):
        opened(f"{tmp_path / 'a'}:train")


def test_a_directory_of_images_is_read_by_load_dataset(tmp_path):
    for name, value in (("cat", 1), ("dog", 2)):
        (tmp_path / "a" / "train" / name).mkdir(parents=True)
        (tmp_path / "a" / "train" / name / "0.png").write_bytes(png(value))
    source = opened(tmp_path / "a")
    assert (source.class_names, red(source), source.encoded(0)) == (("cat", "dog"), [1, 2], png(1))


VALUE = datasets.Value
TABLES = {
    "no image": ({"label": CLASSES}, {"label": [0]}, r"no column of images; its columns are label \(class label\)"),
    "no label": ({"image": IMAGE}, {}, "has no labels"),
    "two images": (
        {"image": IMAGE, "mask": IMAGE, "label": CLASSES},
        {"mask": [None], "label": [0]},
        "several columns of images, image, mask; choose one with --image",
    ),
    "two labels": (
        {"image": IMAGE, "fine": CLASSES, "coarse": CLASSES},
        {"fine": [0], "coarse": [1]},
        "several columns that may be the label, fine, coarse; choose one with --label",
    ),
    "no label in a row": ({"image": IMAGE, "label": CLASSES}, {"label": [None]}, "has no label in 1 of 1 rows"),
    "unlabelled": ({"image": IMAGE, "label": CLASSES}, {"label": [-1]}, "has the label -1"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_data_sets_that_are_no_labelled_images(tmp_path, kind):
    features, columns, message = TABLES[kind]
    save(tmp_path / "a", train=dataset([1], features, **columns))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "a")


def test_integers_and_strings_are_labels_too(tmp_path):
    save(tmp_path / "a", train=dataset([1, 2], {"image": IMAGE, "kind": VALUE("string")}, kind=["b", "a"]))
    source = opened(tmp_path / "a")
    assert (source.class_names, source.labels.tolist()) == (("a", "b"), [1, 0])
    features = {"image": IMAGE, "label": VALUE("int32"), "id": VALUE("int64")}
    save(tmp_path / "b", train=dataset([1, 2], features, label=[2, 0], id=[5, 6]))
    assert opened(tmp_path / "b").class_names == ("0", "1", "2")
    assert opened(tmp_path / "b", label="id").num_classes == 7


def test_class_names_that_differ_between_splits(tmp_path):
    other = {"image": IMAGE, "label": datasets.ClassLabel(names=["dog", "cat"])}
    save(tmp_path / "a", train=dataset([1], label=[0]), test=dataset([1], other, label=[0]))
    assert len(opened(tmp_path / "a")) == 1
    with pytest.raises(UserError, match="class 0 of its split test is 'dog', and the training set calls it 'cat'"):
        opened(tmp_path / "a", "test")


def test_splits_without_a_training_set(tmp_path):
    save(tmp_path / "a", test=dataset([1], label=[0]))
    with pytest.raises(UserError, match="has no split train; it has test; .* set of its own, give hf:.*a:test"):
        opened(tmp_path / "a")


@pytest.mark.parametrize("name", ["../x", "a/../b", "a..b", "/nowhere/at/all", "a/b/c/d", "-x", "a b", "https://x/y"])
def test_what_is_no_directory_and_no_name(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the hub is asked"))
    with pytest.raises(
        UserError, match="there is no directory .*, and it is not a name on the hub, which is OWNER/NAME"
    ):
        opened(name)


def refuse(error):
    def dataset_info(self, name, timeout):
        raise error

    return dataset_info


def test_the_hub_without_a_network_or_a_token(tmp_path, monkeypatch, capsys):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    asked = "huggingface_hub.HfApi.dataset_info"
    monkeypatch.setattr(asked, refuse(OSError("[Errno -2] Name or service not known")))
    assert main(["data", "show", "hf:some/set"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: hf:some/set: there is no directory some/set, and no data set of that name in the local"
    )
    assert error.endswith("the hub cannot be reached ([Errno -2] Name or service not known)\n")
    assert datasets.config.HF_HUB_OFFLINE is False
    for kind in (RepositoryNotFoundError, GatedRepoError):
        monkeypatch.setattr(asked, refuse(kind("refused", response=MagicMock())))
        assert main(["data", "show", "hf:some/set"]) == 2
        assert "log in with `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr(asked, lambda *_, **__: pytest.fail("the hub is asked"))
    with pytest.raises(UserError, match="in the local cache, and downloads are for runs that are not dry or distrib"):
        open_source("hf:some/set", may_prepare=False)


def test_the_hub_is_asked_for_a_name_and_a_configuration(monkeypatch):
    given = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, timeout: given.append(name))
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *names: given.append(names) or datasets.DatasetDict(test=dataset([1], label=[0])),
    )
    assert len(opened("some/set/small:test")) == 1
    assert given == ["some/set", ("some/set", "small")]


@pytest.mark.parametrize("kind", ["nothing in it", "a pipe", "noise", "no JSON", "cut"])
def test_directories_that_are_no_data_set(tmp_path, kind, capsys):
    path = save(tmp_path / "a", train=dataset([1], label=[0]))
    (arrow,) = path.rglob("*.arrow")
    if kind == "nothing in it":
        path = tmp_path / "empty"
        path.mkdir()
    elif kind == "a pipe":
        arrow.unlink()
        os.mkfifo(arrow)
    elif kind == "noise":
        arrow.write_bytes(bytes(range(256)) * 9)
    elif kind == "no JSON":
        (path / "train" / "state.json").write_text("[" * 9999)
    else:
        arrow.write_bytes(arrow.read_bytes()[:200])
    assert main(["data", "show", f"hf:{path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_written_is_what_the_library_reads(tmp_path):
    save(tmp_path / "a", train=dataset([1, 2], label=[0, 1]), test=dataset([3], label=[1]))
    for form in ("hf", "parquet"):
        assert main(["data", "write", f"hf:{tmp_path / 'a'}", str(tmp_path / form), "--format", form]) == 0
    with module._quiet():
        loaded = [datasets.load_from_disk(str(tmp_path / "hf")), datasets.load_dataset(str(tmp_path / "parquet"))]
    for each in loaded:
        assert {name: len(rows) for name, rows in each.items()} == {"train": 2, "test": 1}
        assert each["train"].features["label"].names == ["cat", "dog"]
        assert each["train"][0]["image"].getpixel((0, 0)) == (1, 0, 0)
    state = json.loads((tmp_path / "hf" / "train" / "state.json").read_text())
    assert [file["filename"] for file in state["_data_files"]] == ["data-00000-of-00001.arrow"]
