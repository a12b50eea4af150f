"""predict, features, models and export, as a user calls them."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import parity
from parity.conversion.checkpoints import read_checkpoint
from resnet_flax.__main__ import main
from resnet_flax.commands.models import markdown
from resnet_flax.data import EvaluationTransform
from resnet_flax.data.decoding import Decoding
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.inference import find_images, make_apply, read_batches
from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.load import load_pretrained
from resnet_flax.weights.metadata import Metadata

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")
skimage_data = pytest.importorskip("skimage.data")

from tests import ROOT
from tests.numerics import TENSORS, assert_close_to_torch, tolerance, torch_noise
from tests.torch_models import randomized


def command(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of different sizes and modes."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(skimage_data.astronaut()).save(folder / "astronaut.png")
    Image.fromarray(skimage_data.coffee()).save(folder / "coffee.jpg", quality=95)
    Image.fromarray(skimage_data.camera()).convert("L").save(folder / "camera.png")
    return folder


@pytest.fixture(scope="module")
def original():
    return randomized(torchvision.models.resnet18()).eval()


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18-f37072fd.pth"  # V1's name: resize 256
    torch.save(original.state_dict(), path)
    return path


def test_predictions_equal_torchvisions(folder, weights, original, capsys):
    """The same five classes in the same order, with their probabilities."""
    assert command("predict", folder, "--weights", weights, "--json", "--batch-size", 2) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    images = torch.stack([preset.transforms()(Image.open(line["image"]).convert("RGB")) for line in lines])
    with torch.no_grad():
        expected = original(images).topk(5).indices.tolist()
    for line, indices in zip(lines, expected, strict=True):
        assert [row["index"] for row in line["top"]] == indices
        assert [row["class"] for row in line["top"]] == [preset.meta["categories"][i] for i in indices]

    class Top(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x).softmax(-1).topk(5).values

    noise = torch_noise(Top(original), images.permute(0, 2, 3, 1).numpy(), ("output",))
    exact, floor = (group[TENSORS]["output"] for group in (noise.oracle, noise.floors))
    ours = np.array([[row["probability"] for row in line["top"]] for line in lines])
    printed = 0.5e-6  # six digits after the point
    assert (np.abs(ours - exact) <= printed + tolerance(floor) * np.linalg.norm(exact)).all()


def test_a_broken_image_is_reported_and_the_rest_done(folder, weights, capsys, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
    assert command("predict", broken, tmp_path / "gone.png", folder / "coffee.jpg", "--weights", weights) == 2
    capsys.readouterr()
    assert command("predict", broken, folder / "coffee.jpg", "--weights", weights, "--top", 2) == 1
    captured = capsys.readouterr()
    assert f"cannot read image {broken}" in captured.err
    assert "coffee.jpg" in captured.out
    assert "resize 256 (bilinear), center crop 224" in captured.err


def test_images_from_patterns_and_stdin(folder, weights, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder / 'coffee.jpg'}\n\n"))
    assert command("predict", "-", str(folder / "*.png"), "--weights", weights, "--json", "--top", 1) == 0
    images = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert images == [str(folder / name) for name in ("coffee.jpg", "astronaut.png", "camera.png")]


def test_features_are_the_models(folder, weights, original, tmp_path, capsys):
    out = tmp_path / "f.npz"
    assert command("features", folder, "--weights", weights, "--taps", "layer3,pool", "--out", out) == 0
    loaded = load_pretrained("resnet18", weights)
    with np.load(out) as arrays:
        assert sorted(arrays) == ["layer3", "paths", "pool"]
        assert [path.rsplit("/", 1)[1] for path in arrays["paths"]] == ["astronaut.png", "camera.png", "coffee.jpg"]
        assert arrays["layer3"].shape == (3, 14, 14, 256)
        prepare = loaded.preprocessing
        pixels = np.stack([prepare.transform(Image.open(path).convert("RGB")) for path in arrays["paths"]])
        images = ((pixels / 255 - np.array(prepare.mean)) / np.array(prepare.std)).astype(np.float32)
        ours = {"layer3": arrays["layer3"], "avgpool": arrays["pool"][:, None, None]}
        assert_close_to_torch(ours, original, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("features", "{folder}", "--weights", "{weights}", "--taps", "layer5", "--out", "{out}.npz"),
            "no tap named layer5",
        ),
        (("features", "{folder}", "--weights", "{weights}", "--taps", ",", "--out", "{out}.npz"), "--taps is empty"),
        (
            ("export", "--weights", "{weights}", "--size", "0", "9", "--out", "{out}.stablehlo"),
            "--size must be between 1 and 16384; got 0",
        ),
        (("features", "{folder}", "--weights", "{weights}", "--out", "{out}.h5"), "must end in .npz"),
        (("features", "{folder}", "--weights", "{weights}", "--out", "{out}/no/f.npz"), "is not a directory"),
        (("predict", "nothing-here", "--weights", "{weights}"), "nothing-here: no such image"),
        (("predict", "--weights", "{weights}"), "no images given"),
        (
            ("predict", "{folder}", "--weights", "{weights}", "--batch-size", "0"),
            "--batch-size must be at least 1; got 0",
        ),
        (("predict", "{folder}", "--weights", "{weights}", "--top", "0"), "--top must be at least 1; got 0"),
        (("export", "--weights", "{weights}", "--out", "{out}.tflite"), "must end in .safetensors"),
        (
            ("export", "--weights", "{weights}", "--out", "{out}.pth", "--format", "onnx"),
            "the name of a file of --format onnx ends in .onnx",
        ),
        (("export", "--weights", "{weights}", "--out", "{out}.pth", "--uint8"), "--uint8 is for .onnx files"),
        (("predikt",), "no command 'predikt'"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(arguments, message, folder, weights, tmp_path, capsys):
    values = {"folder": folder, "weights": weights, "out": tmp_path / "out"}
    assert command(*(argument.format(**values) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_a_second_batch_and_a_second_call_do_not_compile_again(folder, weights):
    compiled = []

    def listen(event: str, duration: float, **kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    pretrained = load_pretrained("resnet18", weights)
    paths = find_images([str(folder)])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for taps in ((), ("layer4", "pool")):
            apply = make_apply(pretrained, taps)
            counts = []
            for batch in [*read_batches(paths, pretrained, 2), *read_batches(paths, pretrained, 2)]:
                apply(batch.images)  # the second has one image, and is padded
                counts.append(len(compiled))
            assert counts[0] > 0
            assert counts == [counts[0]] * 4
            compiled.clear()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_models_lists_every_architecture_within_80_columns(capsys):
    assert command("models") == 0
    out = capsys.readouterr().out
    for name, row in ARCHITECTURES.items():
        assert name in out
        assert f"{row.parameters:,}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_model_zoo_page_is_up_to_date():
    page = ROOT / "docs" / "model-zoo.md"
    assert page.read_text() == markdown(), "python -m resnet_flax models --markdown > docs/model-zoo.md"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_exported_weights_load_into_torchvision(suffix, weights, original, tmp_path):
    out = tmp_path / f"model{suffix}"
    assert command("export", "--weights", weights, "--out", out) == 0
    again = load_pretrained("resnet18", out)
    np.testing.assert_array_equal(again.model.fc.kernel[...], original.fc.weight.detach().T)
    if suffix == ".safetensors":
        assert again.preprocessing.transform.resize_size == 256
        assert again.notes == ()
    assert command("export", "--weights", weights, "--out", out) == 2  # it exists


def test_own_class_names_and_preprocessing_are_kept(weights, tmp_path, capsys):
    names, out = tmp_path / "names.txt", tmp_path / "out.safetensors"
    names.write_text("\n".join(f"name {number}" for number in range(1000)))
    options = ["--resize", 40, "--crop", 32, "--mean", 0.5, "--std", 0.25, "--exif-orientation"]
    assert command("export", "--weights", weights, "--class-names", names, *options, "--out", out) == 0
    kept = Metadata(read_checkpoint(out).metadata)
    assert kept.class_names[::999] == ("name 0", "name 999")
    expected = Preprocessing(EvaluationTransform(40, 32), (0.5,), (0.25,), Decoding(exif_orientation=True))
    assert kept.preprocessing == expected
    names.write_text("one\ntwo\n")
    assert command("export", "--weights", weights, "--class-names", names, "--out", tmp_path / "no.pth") == 2
    assert f"error: {weights} has 1,000 classes, but 2 class names are given" in capsys.readouterr().err


def test_stablehlo_artifact_runs_without_this_package(weights, original, tmp_path):
    out = tmp_path / "model.stablehlo"
    assert command("export", "--weights", weights, "--out", out, "--size", 33, 40) == 0
    images = parity.random_inputs((3, 33, 40, 3))
    np.save(tmp_path / "images.npy", images)
    script = """if True:
        import sys, numpy as np, jax
        from jax import export
        program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
        assert program.platforms == ("cpu", "cuda"), program.platforms
        images = np.load(sys.argv[2])
        np.save(sys.argv[3], np.asarray(program.call(images)))
        assert program.call(images[:1]).shape == (1, 1000)
        assert not [name for name in sys.modules if name.startswith(("resnet_flax", "parity", "flax"))]
    """
    subprocess.run(
        [sys.executable, "-c", script, out, tmp_path / "images.npy", tmp_path / "y.npy"], check=True, timeout=300
    )
    assert_close_to_torch({"output": np.load(tmp_path / "y.npy")}, original, images)
