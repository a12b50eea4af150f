"""Every option that takes a file or a folder, given what is none: one sentence, status 2, nothing left, no hanging."""

import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity.__main__ import main as parity
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.__main__ import main as resnet_flax
from resnet_flax.training import setup
from tests.resnet_flax.training.small import OPTIONS, create

HANGS = 600  # seconds; each takes a few of an idle machine


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the name may be 107 bytes


KINDS = {
    # name: makes it at a path, or is the path
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": fifo,
    "a socket": listening,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("absent"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path: (fifo("pipe"), path.symlink_to("pipe")),
    "a file of the kernel": lambda path: path.symlink_to("/proc/self/mem"),
    "an empty file": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "a page": lambda path: path.write_text("<!DOCTYPE html><title>404</title>"),
    "nested brackets": lambda path: path.write_text("[" * 100_000),
    "half an archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)),
    "a path through a file": lambda path: Path("file").write_text("") and None,
}
NAMES = {
    "a path through a file": "file/{name}",
    "a long name": "x" * 300 + "{suffix}",
    "a name that is not UTF-8": "\udcff{suffix}",
    "a name with an escape": "\x1b[31m{suffix}",
}
NETWORK = "good.safetensors"
TRAIN = ["train", "digits", "--device", "cpu", "--dry-run"]

# The options that read: {name: (program, arguments with BAD, its suffix)}
READERS = {
    "predict IMAGE": (resnet_flax, ["predict", "BAD", "--weights", NETWORK], ".png"),
    "predict --weights .safetensors": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ".safetensors"),
    "predict --weights .pth": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ".pth"),
    "predict --weights .npz": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ".npz"),
    "predict --weights .msgpack": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ".msgpack"),
    "predict --weights .pkl": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ".pkl"),
    "predict --weights folder": (resnet_flax, ["predict", "good.png", "--weights", "BAD"], ""),
    "predict --class-names .txt": (
        resnet_flax,
        ["predict", "good.png", "--weights", NETWORK, "--class-names", "BAD"],
        ".txt",
    ),
    "predict --class-names .json": (
        resnet_flax,
        ["predict", "good.png", "--weights", NETWORK, "--class-names", "BAD"],
        ".json",
    ),
    "features --weights": (
        resnet_flax,
        ["features", "good.png", "--weights", "BAD", "--out", "new.npz"],
        ".safetensors",
    ),
    "export --weights": (resnet_flax, ["export", "--weights", "BAD", "--out", "new.pth"], ".safetensors"),
    "push --weights": (resnet_flax, ["push", "me/x", "--weights", "BAD", "--to", "new"], ".safetensors"),
    "push --evaluation": (
        resnet_flax,
        ["push", "me/x", "--weights", NETWORK, "--to", "new", "--evaluation", "BAD"],
        ".json",
    ),
    "average FILE": (resnet_flax, ["average", NETWORK, "BAD", "--out", "new.safetensors"], ".safetensors"),
    "data show folder:": (resnet_flax, ["data", "show", "folder:BAD"], ""),
    "data show idx:": (resnet_flax, ["data", "show", "idx:BAD"], ""),
    "data show hf:": (resnet_flax, ["data", "show", "hf:BAD"], ""),
    "data show parquet:": (resnet_flax, ["data", "show", "parquet:BAD"], ".parquet"),
    "data show wds:": (resnet_flax, ["data", "show", "wds:BAD"], ".tar"),
    "data show --labels": (resnet_flax, ["data", "show", "folder:images", "--labels", "BAD"], ".csv"),
    "data show --classes": (resnet_flax, ["data", "show", "folder:images", "--classes", "BAD"], ".json"),
    "data show --data-dir": (resnet_flax, ["data", "show", "tfds:absent", "--data-dir", "BAD"], ""),
    "data write folder:": (resnet_flax, ["data", "write", "folder:BAD", "mine", "--data-dir", "t"], ""),
    "train --data folder:": (resnet_flax, [*TRAIN, "--data", "folder:BAD"], ""),
    "train --data idx:": (resnet_flax, [*TRAIN, "--data", "idx:BAD"], ""),
    "train --class-weights": (resnet_flax, [*TRAIN, "--class-weights", "BAD"], ".json"),
    "train --classes": (resnet_flax, [*TRAIN, "--data", "folder:images", "--classes", "BAD"], ".txt"),
    "train --weights": (resnet_flax, [*TRAIN[:-1], "--weights", "BAD", "--workdir", "run"], ".safetensors"),
    "train --resume --workdir": (resnet_flax, ["train", "--resume", "--workdir", "BAD"], ""),
    "train --evaluate --weights": (resnet_flax, [*TRAIN[:-1], "--evaluate", "--weights", "BAD"], ".pth"),
    "train --compare": (resnet_flax, ["train", "--compare", "BAD", "BAD"], ""),
    "convert SRC": (parity, ["convert", "BAD", "new.safetensors"], ".pth"),
    "inspect SRC": (parity, ["inspect", "BAD"], ".safetensors"),
    "check --weights": (parity, ["check", "cifar_resnet20", "--weights", "BAD"], ".safetensors"),
    "check --onnx": (parity, ["check", "cifar_resnet20", "--weights", NETWORK, "--onnx", "BAD"], ".onnx"),
    "check --image": (parity, ["check", "cifar_resnet20", "--image", "BAD"], ".png"),
    "check --reference": (parity, ["check", "cifar_resnet20", "--reference", "BAD"], ".safetensors"),
    "record --checkpoint": (
        parity,
        ["record", "cifar_resnet20", "--checkpoint", "BAD", "--out", "new.safetensors"],
        ".safetensors",
    ),
    "diff A B": (parity, ["diff", NETWORK, "BAD"], ".safetensors"),
}
# The options that write. What they are given exists and is none of their kind, or cannot exist.
UNWRITABLE = ("a folder", "a pipe", "a link to itself", "a path through a file", "a long name")
WRITERS = {
    "features --out": (resnet_flax, ["features", "good.png", "--weights", NETWORK, "--out", "BAD"], ".npz"),
    "export --out .pth": (resnet_flax, ["export", "--weights", NETWORK, "--out", "BAD", "--force"], ".pth"),
    "push --to": (resnet_flax, ["push", "me/x", "--weights", NETWORK, "--to", "BAD"], ""),
    "average --out": (resnet_flax, ["average", NETWORK, NETWORK, "--out", "BAD", "--force"], ".pth"),
    "data show --sheet": (resnet_flax, ["data", "show", "folder:images", "--sheet", "BAD"], ".png"),
    "data show --json": (resnet_flax, ["data", "show", "folder:images", "--json", "BAD"], ".json"),
    "convert DST": (parity, ["convert", NETWORK, "BAD", "--force"], ".pth"),
    "data write --data-dir": (resnet_flax, ["data", "write", "folder:images", "mine", "--data-dir", "BAD"], ""),
    "data write --format wds": (resnet_flax, ["data", "write", "folder:images", "BAD", "--format", "wds"], ""),
    "data write --format parquet": (resnet_flax, ["data", "write", "folder:images", "BAD", "--format", "parquet"], ""),
    "train --workdir": (resnet_flax, [*TRAIN[:-1], *OPTIONS, "--workdir", "BAD"], ""),
}
# Images that cannot be read are skipped, each with a line, and the status is 1.
REGULAR = ("a file of the kernel", "an empty file", "noise", "a page", "nested brackets", "half an archive")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with what is right: weights, an image, a folder of images."""
    from flax import nnx

    from parity.conversion.convert import to_torch
    from resnet_flax.models import build_model

    folder = tmp_path_factory.mktemp("good")
    write_checkpoint(folder / NETWORK, to_torch(build_model("cifar_resnet20", num_classes=10, rngs=nnx.Rngs(0))))
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    for name in "ab":
        (folder / "images" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (4, 4), 9 * number).save(folder / "images" / name / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def here(good, tmp_path, monkeypatch):
    """The current directory, with links to what is right; a command that hangs fails."""
    monkeypatch.chdir(tmp_path)
    for path in good.iterdir():
        Path(path.name).symlink_to(path)

    def stop(number, frame):
        pytest.fail("it hangs")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def left():
    return sorted(str(path) for path in Path().rglob("*") if not path.is_relative_to("images"))


def cases():
    """Every option with every kind; without `-m full` each option with a few, and each kind with some option."""
    every = [(option, list(dict.fromkeys((*KINDS, *NAMES)))) for option in READERS]
    writable = {"train --workdir": ["a folder"], "data write --data-dir": ["a folder"]}
    every += [(option, [kind for kind in UNWRITABLE if kind not in writable.get(option, ())]) for option in WRITERS]
    for number, (option, kinds) in enumerate(every):
        builds = option.startswith(("check", "record"))  # a network in both frameworks
        few = {kinds[(2 * number + i) % len(kinds)] for i in range(1 if builds else 2)}
        for kind in kinds:
            marks = () if kind in few else pytest.mark.full
            yield pytest.param(option, kind, id=f"{option}, {kind}", marks=marks)


@pytest.mark.parametrize(("option", "kind"), list(cases()))
def test_what_is_no_file(option, kind, capfd, monkeypatch):
    if option == "train --workdir":
        monkeypatch.setattr(setup, "create_model", create)
    program, arguments, suffix = (READERS | WRITERS)[option]
    bad = NAMES.get(kind, "bad{suffix}").format(name=f"bad{suffix}", suffix=suffix)
    if kind in KINDS:
        KINDS[kind](Path(bad))
    before = left()
    try:
        status = program([argument.replace("BAD", bad) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    errors = capfd.readouterr().err
    skipped = option == "predict IMAGE" and kind in REGULAR
    assert status == (1 if skipped else 2), errors
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == (not skipped), errors
    named = bad.encode("unicode_escape").decode()[:50]
    if kind == "a path through a file" and option in WRITERS:
        named = "file"  # the directory that is none
    assert named in errors or "good.safetensors has 10 classes, but 1 class names are given" in errors
    assert "Traceback" not in errors
    assert "\x1b" not in errors
    assert left() == before
