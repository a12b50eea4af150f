"""The stream of batches: the same for every number of workers and hosts, exact epochs, nothing left behind at exit."""

import hashlib
import io
import itertools
import logging
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from parity.errors import UsageError
from resnet_flax.data import (
    CorruptImage,
    SmallImageTransform,
    TrainingTransform,
    evaluation_batches,
    evaluation_transform,
    open_source,
    steps_per_epoch,
    training_batches,
)
from resnet_flax.data.pipeline import TrainingOrder
from resnet_flax.data.prepare import write_tfds
from resnet_flax.errors import UserError

TRANSFORM = TrainingTransform(8, augment="trivial_augment_wide")
PYTHON = sys.executable, "-W", "ignore:2 workers on 1 cores"  # which is all that a small machine would print


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (11 + i, 14, 3), np.uint8))
                image.save(root / split / name / f"{i}.png")
    return root


def take(stream, count):
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(a[key], b[key])


def test_epochs_are_exact_and_fresh():
    source = open_source("synthetic:4x4x1:22")
    assert steps_per_epoch(len(source), 5) == 4
    batches = take(training_batches(source, SmallImageTransform(padding=0), batch_size=5, seed=3), 12)
    epochs = np.stack([b["index"] for b in batches]).reshape(3, 20)
    for epoch in epochs:
        assert len(set(epoch)) == 20
    assert (epochs[0] != epochs[1]).any()
    assert set(epochs.ravel()) == set(range(22))  # what one epoch drops another shows
    for batch in batches:
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        for i, index in enumerate(batch["index"]):
            assert batch["label"][i] == source[index]["label"]
            mirrored = source[index]["image"][:, ::-1]
            assert any(np.array_equal(batch["image"][i], image) for image in (source[index]["image"], mirrored))


def test_the_seed_decides_and_the_pixels_depend_on_epoch_index_and_repeat(folder):
    source = open_source(f"folder:{folder}")

    def run(seed):
        return take(training_batches(source, TRANSFORM, batch_size=7, seed=seed), 6)

    first = run(1)
    same(first, run(1))
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, run(2), strict=True))
    repeated = take(training_batches(source, TRANSFORM, batch_size=20, seed=1, repeats=2), 2)
    for batch, epoch, firsts in ((first[1], 0, 7), (first[4], 1, 7), (repeated[0], 0, 10), (repeated[1], 1, 10)):
        for i, index in enumerate(batch["index"].tolist()):
            rng = np.random.default_rng([1, epoch, index, i // firsts])
            np.testing.assert_array_equal(batch["image"][i], TRANSFORM(source[index]["image"], rng))


def test_the_array_path_equals_the_sample_path():
    source = open_source("digits")
    for transform in (SmallImageTransform(padding=2), SmallImageTransform(11, padding=1, flip=0)):
        fast = take(training_batches(source, transform, batch_size=50, seed=0, start_step=27), 3)
        slow = take(training_batches(source, lambda *a, t=transform: t(*a), batch_size=50, seed=0, start_step=27), 3)
        same(fast, slow)
    for resize in (None, 12):
        transform = evaluation_transform(resize, resize)
        fast = take(evaluation_batches(source, transform, batch_size=500), 3)
        slow = take(evaluation_batches(source, lambda *a, t=transform: t(*a), batch_size=500), 3)
        for a, b in zip(fast, slow, strict=True):
            for key in ("image", "label", "mask"):
                np.testing.assert_array_equal(a[key], b[key])


PROGRAM = """
import hashlib, sys
from resnet_flax.data import open_source, training_batches, TrainingTransform
if __name__ == "__main__":
    folder, start, count, workers = sys.argv[1], *map(int, sys.argv[2:])
    stream = training_batches(
        open_source(f"folder:{folder}"), TrainingTransform(8, augment="trivial_augment_wide"),
        batch_size=5, seed=4, start_step=start, workers=workers, repeats=2,
    )
    for _ in range(count):
        batch = next(stream)
        print(batch["index"].tolist(), hashlib.sha256(batch["image"].tobytes()).hexdigest())
"""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_new_process_with_other_workers_goes_on_where_one_stopped(folder, tmp_path, workers):
    """The program leaves without closing its stream: nothing but the batches may be printed."""
    source = open_source(f"folder:{folder}")
    whole = take(training_batches(source, TRANSFORM, batch_size=5, seed=4, repeats=2), 9)
    start = 2 + workers
    expected = [f"{b['index'].tolist()} {hashlib.sha256(b['image'].tobytes()).hexdigest()}" for b in whole[start:]]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [*PYTHON, str(program), str(folder), str(start), str(len(expected)), str(workers)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected


def test_evaluation_in_worker_processes_leaves_nothing_behind(folder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from resnet_flax.data import *\n"
        'if __name__ == "__main__":\n'
        f"    source = open_source('folder:{folder}', 'val')\n"
        "    batches = list(evaluation_batches(source, evaluation_transform(9, 9), batch_size=4, workers=2))\n"
        "    print(len(batches), sum(int(b['mask'].sum()) for b in batches))\n"
    )
    done = subprocess.run([*PYTHON, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("4 15\n", "")


@pytest.mark.parametrize("repeats", [1, 3])
def test_hosts_share_the_global_batch(repeats):
    def order(index, count):
        return TrainingOrder(31, 3, 10 // count, seed=5, shard_index=index, shard_count=count, repeats=repeats)

    for step in range(7):
        whole = order(0, 1)(step)
        parts = [order(index, 2)(step) for index in range(2)]
        for k in (1, 2):
            np.testing.assert_array_equal(np.concatenate([part[k] for part in parts]), whole[k])
        assert (np.roll(whole[1], 1) != whole[1]).all()  # mixup never blends an image with itself
        if repeats == 1:
            assert not set(parts[0][1]) & set(parts[1][1])
    samples = [sample for step in range(3) for sample in zip(*order(0, 1)(step)[1:], strict=True)]
    assert len(set(samples)) == 30
    assert len({index for index, _ in samples}) == 30 // repeats


@pytest.mark.parametrize(("length", "batch_size", "hosts"), [(23, 4, 1), (23, 4, 2), (8, 4, 2), (9, 4, 2), (3, 4, 3)])
def test_evaluation_covers_the_set_once(length, batch_size, hosts):
    source = open_source(f"synthetic:3x5x3:{length}", "test")
    for transform in (evaluation_transform(None, None), lambda image, rng: image):
        streams = [
            list(evaluation_batches(source, transform, batch_size=batch_size, shard_index=index, shard_count=hosts))
            for index in range(hosts)
        ]
        assert {len(stream) for stream in streams} == {-(-length // (batch_size * hosts))}
        seen = []
        for batch in itertools.chain(*streams):
            assert batch["image"].shape == (batch_size, 3, 5, 3)
            assert not batch["image"][~batch["mask"]].any()
            seen += [image.tobytes() for image in batch["image"][batch["mask"]]]
        assert sorted(seen) == sorted(source[i]["image"].tobytes() for i in range(length))


def test_damaged_images_are_named_or_replaced_and_counted(folder, tmp_path, caplog):
    root = tmp_path / "set"
    shutil.copytree(folder, root)
    for path in (root / "train" / "a" / "3.png", root / "train" / "b" / "6.png", root / "val" / "c" / "1.png"):
        path.write_bytes(path.read_bytes()[:50])
    source, test = open_source(f"folder:{root}"), open_source(f"folder:{root}", "val")
    with pytest.raises(CorruptImage, match=r"a/3\.png|b/6\.png"):
        take(training_batches(source, TRANSFORM, batch_size=7, seed=0), 3)
    with pytest.raises(CorruptImage, match="; more damaged images than --skip-corrupt 1; repair them"):
        take(training_batches(source, TRANSFORM, batch_size=7, seed=0, skip_corrupt=1), 6)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "resnet_flax.data"):
        batches = take(training_batches(source, TRANSFORM, batch_size=7, seed=0, skip_corrupt=2), 6)
    skipped = [record.message for record in caplog.records]
    assert all(message.startswith("skipped damaged image ") for message in skipped)
    assert [message[-16:] for message in skipped] == ["(1 of at most 2)", "(2 of at most 2)"]
    assert not {3, 13} & {index for batch in batches for index in batch["index"].tolist()}
    batches = list(evaluation_batches(test, evaluation_transform(9, 9), batch_size=4, skip_corrupt=1))
    assert sum(int(batch["mask"].sum()) for batch in batches) == 14
    with pytest.raises(CorruptImage, match=r"c/1\.png"):
        list(evaluation_batches(test, evaluation_transform(9, 9), batch_size=4))


def test_a_set_without_one_readable_image(tmp_path):
    for name in ("train/a/1.png", "val/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match="train: none of its 1 images can be read"):
        take(training_batches(open_source(f"folder:{tmp_path}"), TRANSFORM, batch_size=1, seed=0, skip_corrupt=1), 1)


@pytest.fixture
def digits_as_records(tmp_path):
    digits = open_source("digits")
    write_tfds("eights", tmp_path, {"train": digits, "test": open_source("digits", "test")})
    return digits, open_source("tfds:eights", data_dir=tmp_path)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0], ids=["held in memory", "read one by one"])
@pytest.mark.parametrize("transform", [evaluation_transform(12, 12), SmallImageTransform(padding=2)], ids=["12", "8"])
def test_an_array_and_records_give_the_same_stream(digits_as_records, monkeypatch, cache_bytes, transform):
    array, records = digits_as_records
    expected = take(training_batches(array, transform, batch_size=64, seed=9, start_step=20), 4)
    monkeypatch.setattr("resnet_flax.data.arrays.CACHE_BYTES", cache_bytes)
    same(expected, take(training_batches(records, transform, batch_size=64, seed=9, start_step=20), 4))
    assert (records._array is not None) == bool(cache_bytes)
    restored = pickle.loads(pickle.dumps(records))  # as for a worker: without the images in memory
    assert restored._array is None
    np.testing.assert_array_equal(restored.labels, records.labels)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], ids=["damaged", "wider"])
@pytest.mark.parametrize("place", [0, 5])
def test_one_odd_image_among_records_of_one_size(digits_as_records, monkeypatch, place, image):
    _, records = digits_as_records
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    stored = data.getvalue() if image.shape == (8, 9) else data.getvalue()[:40]
    read = records._record
    monkeypatch.setattr(records, "_record", lambda i: {**read(i), "image": stored} if i == place else read(i))
    batches = evaluation_batches(records, evaluation_transform(8, 8), batch_size=16, skip_corrupt=1)
    assert next(batches)["mask"].tolist() == [i != place or image.shape == (8, 9) for i in range(16)]
    batches.close()
    with pytest.raises(
        CorruptImage if image.shape == (8, 8) else UserError, match=f"^cannot read image {place} of|share"
    ):
        take(training_batches(records, SmallImageTransform(), batch_size=len(records), seed=0), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 33}, "32 images, fewer than one batch of 33"),
        ({"batch_size": 17, "shard_count": 2}, "fewer than one batch of 34"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"workers": -1}, "workers must be at least 0; got -1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index must be between 0 and 1; got 2"),
        ({"repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_unusable_arguments_are_refused_at_once(options, message):
    source = open_source("synthetic:4x4x3:32")
    with pytest.raises(UsageError, match=message):
        training_batches(source, TRANSFORM, **{"batch_size": 4, "seed": 0, **options})


def test_more_workers_than_cores_are_warned_about():
    source = open_source("synthetic:4x4x3:32")
    with pytest.warns(UserWarning, match="4096 workers on"):
        training_batches(source, TRANSFORM, batch_size=4, seed=0, workers=4096).close()
