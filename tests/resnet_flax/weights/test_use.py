"""Class names and preprocessing that a user gives with weights, for one command or kept in a converted file."""

import numpy as np
import pytest
from PIL import Image

import parity.__main__
import resnet_flax
import resnet_flax.__main__
from parity.conversion.checkpoints import load_checkpoint, write_checkpoint
from parity.conversion.convert import to_torch
from resnet_flax.models import build_model
from resnet_flax.weights.files import read_weights
from resnet_flax.weights.metadata import Metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from flax import nnx

    folder = tmp_path_factory.mktemp("use")
    model = build_model("cifar_resnet20", num_classes=3, rngs=nnx.Rngs(0))
    write_checkpoint(folder / "a.safetensors", to_torch(model), {"author": "me"})
    (folder / "names.txt").write_text("cat\ndog\nemu\n")
    (folder / "two.json").write_text('["cat", "dog"]')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(folder / "image.png")
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments):
    return parity.__main__.main(["convert", *arguments])


GIVEN = ["--class-names", "names.txt", "--resize", "36", "--crop", "32", "--mean", "0.1", "0.2", "0.3", "--std", "0.5"]


@pytest.mark.parametrize("destination", ["b.safetensors", "b"])
def test_what_is_given_is_kept_in_the_converted_file(here, capsys, destination):
    assert convert("a.safetensors", destination, *GIVEN) == 0
    assert (
        "no preprocessing came with a.safetensors; kept, the rest of it assumed: resize 36" in capsys.readouterr().err
    )
    kept = resnet_flax.load_pretrained(None, destination)
    assert kept.class_names == ("cat", "dog", "emu")
    assert str(kept.preprocessing) == "resize 36 (bilinear), center crop 32, mean (0.1, 0.2, 0.3), std (0.5,)"
    assert read_weights(destination).metadata["author"] == "me"
    # Other conversions keep it too, and change only what is given.
    assert convert(destination, "c.safetensors", "--crop", "28", "--std", "0.25") == 0
    assert "no preprocessing" not in capsys.readouterr().err
    again = resnet_flax.load_pretrained(None, "c.safetensors")
    assert again.class_names == ("cat", "dog", "emu")
    assert str(again.preprocessing) == "resize 36 (bilinear), center crop 28, mean (0.1, 0.2, 0.3), std (0.25,)"
    for name, array in load_checkpoint("a.safetensors").items():
        np.testing.assert_array_equal(load_checkpoint("c.safetensors")[name], array)


def test_names_alone_assume_no_preprocessing(here):
    assert convert("a.safetensors", "b.safetensors", "--class-names", "names.txt") == 0
    kept = Metadata(read_weights("b.safetensors").metadata)
    assert (kept.class_names, kept.preprocessing) == (("cat", "dog", "emu"), None)


def test_predict_gives_the_same_by_the_options_and_by_the_converted_file(here, capsys):
    assert convert("a.safetensors", "b.safetensors", *GIVEN) == 0
    capsys.readouterr()
    printed = []
    for arguments in (["--weights", "a.safetensors", *GIVEN], ["--weights", "b.safetensors"]):
        assert resnet_flax.__main__.main(["predict", "image.png", "--json", *arguments]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert '"class": "emu"' in printed[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.safetensors", "--class-names", "two.json"], "two.json has 2 class names, but a.safetensors has 3 classes"),
        (["b.safetensors", "--mean", "0.1", "0.2"], "--mean has 2 values, but the network takes 3 channel(s)"),
        (["b.pth", "--crop", "32"], "b.pth keeps nothing beside weights; --crop needs .safetensors or Orbax"),
        (["b.safetensors", "--class-names", "absent.txt"], "cannot read absent.txt: no such file or directory"),
        (["b.safetensors", "--std", "0"], "--std must be above 0; got 0.0"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(here, capsys, arguments, message):
    assert convert("a.safetensors", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in here.iterdir() if path.name.startswith("b")]
