"""Which preprocessing and which arithmetic a network was given its statistics with."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import parity
from parity.__main__ import main
from parity.errors import ParityError
from parity.fingerprints.preprocessing import preprocessings
from tests.parity.fingerprints.networks import calibrated, patches, small

SIZE = 32
COLOUR, GREY = preprocessings(3), preprocessings(1)


def grey(images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images])


def held_out() -> np.ndarray:
    return patches(32, SIZE, 5)


@pytest.mark.parametrize("truth", COLOUR, ids=str)
def test_the_preprocessing_of_a_colour_network(truth):
    report = parity.fingerprint(calibrated(small(), truth(patches(256, SIZE, 1))), held_out())
    right = next(row for row in report.rows if row.candidate.preprocessing == truth)
    assert not right.is_told, report
    # The two photographs' colours leave the order of the channels open now and then; another range never.
    if truth.channels == "RGB" and truth.name != "CLIP's constants":
        assert report.best is right, report
    assert {row.candidate.preprocessing.range for row in report.undecided} <= {truth.range}
    assert report.confidence > 0.9


@pytest.mark.parametrize("truth", GREY, ids=str)
def test_the_preprocessing_of_a_grey_network(truth):
    network = calibrated(small(1), truth(grey(patches(256, SIZE, 1))))
    report = parity.fingerprint(network, grey(held_out()))
    right = next(row for row in report.rows if row.candidate.preprocessing == truth)
    assert not right.is_told, report
    assert report.best.candidate.preprocessing.range == truth.range, report


def test_candidates_of_ones_own():
    own = parity.Preprocessing("ours", (0.2, 0.3, 0.4), (0.1, 0.5, 0.3))
    network = calibrated(small(), own(patches(256, SIZE, 1)))
    report = parity.fingerprint(network, held_out(), [COLOUR[0], own, replace(own, channels="BGR", name="swapped")])
    assert report.best.candidate.preprocessing == own
    assert not report.undecided
    assert report.best.first_departure is None
    assert all(row.first_departure == "1" for row in report.rows[1:])


def test_what_changes_nothing_cannot_be_told_apart():
    network = calibrated(small(), COLOUR[0](patches(256, SIZE, 1)))
    same = replace(COLOUR[0], name="the same under another name")
    report = parity.fingerprint(network, held_out(), [COLOUR[0], same])
    assert [row.candidate.preprocessing for row in report.undecided] == [same]
    assert report.undecided[0].difference.value == 0
    assert report.confidence == 0
    assert "nothing can be told" in report.verdict


def test_what_images_of_another_kind_may_favour_is_not_told():
    """Images with half the contrast of the training set's are nearer with a smaller std, and every draw agrees."""
    network = calibrated(small(), COLOUR[0](patches(256, SIZE, 1)))
    pale = np.uint8(128 + (held_out().astype(np.float32) - 128) / 2)
    closer = replace(COLOUR[0], name="more contrast", std=tuple(value / 1.1 for value in COLOUR[0].std))
    report = parity.fingerprint(network, pale, [COLOUR[0], closer])
    difference = report.rows[1].difference
    assert difference.value < -difference.margin  # the bootstrap alone would have it
    assert report.best.candidate.preprocessing == COLOUR[0]
    assert not report.rows[1].is_told
    assert parity.fingerprint(network, pale, [COLOUR[0], COLOUR[2]]).rows[1].is_told


def test_few_images_decide_less():
    """With two images the interval is wider, and what 32 tell apart may be left open; nothing wrong is told."""
    network = calibrated(small(), COLOUR[0](patches(256, SIZE, 1)))
    few, many = (parity.fingerprint(network, patches(count, SIZE, 5)) for count in (2, 32))
    assert len(few.undecided) >= len(many.undecided)
    assert many.best.candidate in [row.candidate for row in (few.best, *few.undecided)]
    assert many.best.candidate.preprocessing == COLOUR[0]


def test_a_report_is_the_same_every_time_and_fits_into_json():
    network = calibrated(small(), COLOUR[0](patches(256, SIZE, 1)))
    one, again = (parity.fingerprint(network, held_out()) for _ in range(2))
    assert str(one) == str(again)
    assert str(one).splitlines()[2].startswith("RGB, ImageNet's constants")
    data = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    first = data["candidates"][0]
    assert (first["channels"], first["range"], first["options"]) == ("RGB", [0, 1], {})
    assert first["low"] <= first["discrepancy"] <= first["high"]
    figures = [row["discrepancy"] for row in data["candidates"][1:]]
    assert figures == sorted(figures)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((8, 8, 3), np.uint8), "a list of"),
        (np.zeros((1, 8, 8, 3), np.uint8), "1 image"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in size"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)], "some of the images are grey"),
    ],
)
def test_images_that_cannot_be_used(images, words):
    with pytest.raises(ParityError, match=words):
        parity.fingerprint(calibrated(small(), COLOUR[0](patches(64, SIZE, 1))), images)


# A registered family: also what the network computes.


def resnet(changed=lambda network: network, truth=COLOUR[0]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = changed(torchvision.models.resnet18(num_classes=4))
    return calibrated(network, truth(patches(128, 64, 1))).state_dict()


def with_silu(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(getattr(module, "relu", None), nn.ReLU):
            module.relu = nn.SiLU()
    return network


def with_ceil(network: nn.Module) -> nn.Module:
    network.maxpool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    return network


@pytest.fixture(scope="module")
def silu() -> dict[str, torch.Tensor]:
    return resnet(with_silu, truth=COLOUR[6])  # in BGR


@pytest.mark.full  # the command's test below is its twin
def test_the_activation_of_a_resnet_in_bgr(silu):
    report = parity.fingerprint(silu, patches(32, 64, 5))
    best = report.best
    assert best.candidate.options == {"activation": "silu"}, report
    assert best.candidate.preprocessing.channels == "BGR"
    plain = next(row for row in report.rows if row.candidate == best.candidate.having("activation", None))
    assert plain.is_told
    assert plain.first_departure.startswith("layer1.0."), report
    assert next(iter(best.curve)) == "bn1"
    assert len(best.curve) == 20  # every norm of a ResNet-18


def test_the_command_finds_out_and_writes_what_it_found(silu, tmp_path, capsys):
    torch.save({"state_dict": silu}, tmp_path / "model.pth")
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for number, image in enumerate(patches(16, 64, 5)):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    outputs = {
        name: tmp_path / f"found.{ending}" for name, ending in (("json", "json"), ("html", "html"), ("plot", "png"))
    }
    arguments = [str(part) for name, path in outputs.items() for part in (f"--{name}", path)]
    assert main(["inspect", str(tmp_path / "model.pth"), "--images", str(tmp_path / "images"), *arguments]) == 0
    text = capsys.readouterr().out
    assert "broken.jpg cannot be read" in text
    assert "activation silu" in text
    found = json.loads(outputs["json"].read_text())
    assert found["candidates"][0]["options"] == {"activation": "silu"}
    assert "<svg" in outputs["html"].read_text()
    assert outputs["plot"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "found.json"], "--json needs --images"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--images", ".", "--plot", "found.txt"], "the ending must be one of"),
    ],
)
def test_unusable_arguments(silu, arguments, words, tmp_path, monkeypatch, capsys):
    torch.save(silu, tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "model.pth", *arguments]) == 2
    assert words in capsys.readouterr().err
