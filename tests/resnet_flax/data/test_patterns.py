"""Patterns of files, as a shell expands them, and the splits that the names mean."""

import os

import pytest

from resnet_flax.data import patterns
from resnet_flax.data.patterns import expand_braces, files_of_splits, matching_files
from resnet_flax.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("a{b,c}", ["ab", "ac"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}x", ["08x", "09x", "10x", "11x"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{,x}", ["", "x"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
        ("{", ["{"]),
    ],
)
def test_braces_are_expanded_as_in_a_shell(pattern, names):
    assert list(expand_braces(pattern)) == names


def test_patterns_keep_the_order_of_braces_and_sort_the_rest(tmp_path):
    for name in ("a2.tar", "a10.tar", "b1.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern):
        return [path.name for path in matching_files("wds:x", f"{tmp_path}/{pattern}", ".tar")]

    assert names("{b1,a2}.tar") == ["b1.tar", "a2.tar"]
    assert names("*.tar") == ["a10.tar", "a2.tar", "b1.tar"]
    assert names("{b1,*}.tar") == ["b1.tar", "a10.tar", "a2.tar"]
    assert names("") == ["a10.tar", "a2.tar", "b1.tar"]  # a directory stands for its files
    for pattern, message in (("a{1..2}.tar", "cannot read .*a1.tar: no such file"), ("z*.tar", "no file matches .*z")):
        with pytest.raises(UserError, match=message):
            names(pattern)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no .tar files \(it is empty\); give a pattern such as"):
        names("empty")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="cannot read .*pipe.tar: it is a named pipe"):
        names("*.tar")
    (tmp_path / "[x].tar").write_bytes(b"")
    assert names("[x].tar") == ["[x].tar"]


def splits(tmp_path, *names):
    found, notes = files_of_splits("wds:x", [tmp_path / name for name in names])
    rows = {split: [str(path.relative_to(tmp_path)) for path in paths] for split, paths in found.items()}
    return rows, notes


def test_splits_follow_from_names(tmp_path):
    assert splits(tmp_path, "train-0.tar", "imagenet1k-validation-00.tar", "test.v1.tar")[0] == {
        "train": ["train-0.tar"],
        "val": ["imagenet1k-validation-00.tar"],
        "test": ["test.v1.tar"],
    }
    assert splits(tmp_path, "train/0.tar", "valid/0.tar")[0] == {"train": ["train/0.tar"], "val": ["valid/0.tar"]}
    assert splits(tmp_path / "test", "0.tar", "1.tar") == ({"train": ["0.tar", "1.tar"]}, ())
    found, notes = splits(tmp_path, "val-0.tar", "val-1.tar")
    assert found == {"train": ["val-0.tar", "val-1.tar"]}
    assert notes == ("all files of wds:x are of the split val by their names; they are one set here",)
    with pytest.raises(UserError, match="the name of train.tar means a split, and that of a.tar none"):
        splits(tmp_path, "train.tar", "a.tar")
    with pytest.raises(UserError, match="wds:x has files for val and test, and none for training"):
        splits(tmp_path, "val.tar", "test.tar")


def test_braces_cannot_stand_for_files_without_end(monkeypatch):
    monkeypatch.setattr(patterns, "MOST_FILES", 1000)
    with pytest.raises(UserError, match="the braces of wds:x stand for more than 1,000 files"):
        matching_files("wds:x", "{1..999999999}{1..999999999}", ".tar")
