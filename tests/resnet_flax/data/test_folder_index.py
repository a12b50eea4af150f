"""Folders known from an earlier run: nothing that has changed is missed, and a bad index costs no run."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from resnet_flax.data import folder_index, open_source
from resnet_flax.data.folder_index import Index, indexed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "SETTLED", -1.0)  # what has changed just now counts, too
    return tmp_path / "cache" / "folders"


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def listings(monkeypatch):
    """The folders that were listed."""
    seen, listed = [], folder_index.listed
    monkeypatch.setattr(folder_index, "listed", lambda path: (seen.append(Path(path).name), listed(path))[1])
    return seen


def names(data):
    """What training and test set hold."""
    splits = (open_source(f"folder:{data}", split) for split in ("train", "test"))
    return sorted(os.path.relpath(path, data) for source in splits for path in source.paths)


def test_a_folder_is_listed_once_and_not_again_in_the_next_run(data, listings):
    first = names(data)
    assert sorted(listings) == ["a", "b", "data"]
    assert first == [f"{name}/{number}.png" for name in "ab" for number in range(3)]
    assert names(data) == first
    assert len(listings) == 3


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "class"])
def test_what_has_changed_is_seen(data, listings, change):
    before = set(names(data))
    listings.clear()
    if change == "added":
        Image.new("RGB", (4, 4)).save(data / "a" / "new.png")
        expected, again = before | {"a/new.png"}, ["a"]
    elif change == "removed":
        (data / "b" / "1.png").unlink()
        expected, again = before - {"b/1.png"}, ["b"]
    elif change == "renamed":
        (data / "b" / "1.png").rename(data / "b" / "9.png")
        expected, again = before - {"b/1.png"} | {"b/9.png"}, ["b"]
    else:
        (data / "b").rename(data / "c")
        expected, again = {name.replace("b/", "c/") for name in before}, ["data", "c"]
    assert set(names(data)) == expected
    assert listings == again


def test_a_file_in_another_s_place_is_read_anew(data):
    names(data)
    other = data.parent / "other.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(other)
    other.replace(data / "a" / "0.png")
    sources = [open_source(f"folder:{data}", split) for split in ("train", "test")]
    source = next(source for source in sources if str(data / "a" / "0.png") in source.paths)
    assert source[source.paths.index(str(data / "a" / "0.png"))]["image"][0, 0].tolist() == [255, 0, 0]


def test_a_folder_that_has_just_changed_is_listed_again(data, listings, monkeypatch):
    monkeypatch.setattr(folder_index, "SETTLED", 60.0)
    names(data)
    assert listings.count("a") == 2  # once for each split
    assert names(data)
    assert listings.count("a") == 4


def test_a_folder_with_links_is_listed_again(data, listings):
    target = data.parent / "target"
    target.mkdir()
    (data / "a" / "link.png").symlink_to(target)
    assert "a/link.png" not in names(data)
    target.rmdir()
    Image.new("RGB", (4, 4)).save(target, "PNG")  # a folder no longer, and nothing in a has changed
    assert "a/link.png" in names(data)
    assert listings.count("a") == 4


DAMAGE = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "another name": lambda text: text.replace("0.png", "7.png"),
    "no text": lambda text: b"\xff\xfe" + text.encode(),
    "a list": lambda text: "[]",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_index_is_made_again(data, cache, listings, kind):
    before = names(data)
    (file,) = cache.iterdir()
    good, changed = file.read_text(), DAMAGE[kind](file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    listings.clear()
    assert names(data) == before
    assert len(listings) == 3
    assert file.read_text() == good


def test_without_a_cache_directory_folders_are_listed(data, cache, listings, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert len(names(data)) == 6
    assert len(listings) == 6


def test_two_folders_of_the_same_name_have_two_indices(data, cache, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").symlink_to(data)
    names(data)
    names(tmp_path / "elsewhere" / "data")
    assert len(list(cache.iterdir())) == 2


def test_names_that_are_not_utf8_are_kept(tmp_path, cache):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with indexed(folder) as index:
        first = index.listing(str(folder), folder.stat())
    with indexed(folder) as index:
        assert index.known
        assert index.listing(str(folder), folder.stat()) == first
    (file,) = cache.iterdir()
    json.loads(file.read_text().split("\n", 1)[1])


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_listings_are_shown_on_stderr(data, monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(folder_index, "SHOWN_AFTER", -1.0)
    monkeypatch.setattr(folder_index, "SHOWN_EVERY", -1.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    index = Index(data)
    index.listing(str(data / "a"), (data / "a").stat())
    index.save()
    out, err = capsys.readouterr()
    assert not out
    assert err == (f"\r{data}: 3 files\r\x1b[K" if is_terminal else f"{data}: 3 files listed in 0 s\n")
