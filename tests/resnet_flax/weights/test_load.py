"""Weights by name, hub or file; other heads and stems; all of it offline."""

import hashlib
import json
import socket
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
import resnet_flax
from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from parity.errors import ParityError
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.transforms import EvaluationTransform
from resnet_flax.inference import make_apply
from resnet_flax.weights.adapt import adapt_stem
from resnet_flax.weights.load import create_model, load_pretrained
from resnet_flax.weights.metadata import Metadata, metadata_of
from resnet_flax.weights.published import PUBLISHED_WEIGHTS, PublishedWeights, imagenet_classes, published_weights

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from tests.numerics import assert_close_to_torch, assert_rounded
from tests.torch_models import randomized


@pytest.fixture(autouse=True)
def closed_network(monkeypatch, tmp_path):
    """Any attempt to reach a network fails the test; the caches are empty ones."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"tried to reach the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("RESNET_FLAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def original():
    return randomized(torchvision.models.resnet18()).eval()


@pytest.fixture(scope="module")
def file(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(original.state_dict(), path)
    return path


@pytest.mark.parametrize("name", sorted({architecture for architecture, _ in PUBLISHED_WEIGHTS}))
def test_published_weights_are_torchvisions(name):
    theirs = torchvision.models.get_model_weights(name)
    ours = published_weights(name)
    assert list(ours) == [weights.name for weights in theirs]
    assert list(ours.values())[-1].name == theirs.DEFAULT.name
    for weights in theirs:
        row, preset = ours[weights.name], weights.transforms()
        assert row.url == weights.url
        assert row.recipe == weights.meta["recipe"]
        assert {"acc@1": row.top1, "acc@5": row.top5} == weights.meta["_metrics"]["ImageNet-1K"]
        assert imagenet_classes() == tuple(weights.meta["categories"])
        assert row.preprocessing == Preprocessing(
            EvaluationTransform(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value),
            tuple(preset.mean),
            tuple(preset.std),
        )


def test_preprocessing_survives_as_metadata():
    preprocessing = Preprocessing(EvaluationTransform(None, 28), (0.5,), (0.25,))
    assert Preprocessing.from_metadata(preprocessing.to_metadata()) == preprocessing
    assert Preprocessing.from_metadata({}) is None


def test_file_gives_the_original_logits(original, file):
    images = parity.random_inputs((2, 33, 40, 3))
    ours = nnx.jit(resnet_flax.create_model("resnet18", weights=file))(jnp.asarray(images))
    assert_close_to_torch({"output": ours}, original, images)


@pytest.fixture
def published(monkeypatch, file):
    """A row of the table with the hash of a file made here."""
    row = PublishedWeights(
        "resnet18", "IMAGENET1K_V1", hashlib.sha256(file.read_bytes()).hexdigest()[:8], 256, 1.0, 2.0, "none"
    )
    monkeypatch.setitem(PUBLISHED_WEIGHTS, ("resnet18", "IMAGENET1K_V1"), row)
    return row


@pytest.mark.parametrize("place", ["cache/weights", "torch/hub/checkpoints"])
def test_file_put_in_place_by_hand_is_converted_once_and_cached(place, published, file, tmp_path):
    placed = tmp_path / place / published.file_name
    placed.parent.mkdir(parents=True)
    placed.write_bytes(file.read_bytes())
    first = load_pretrained("resnet18", "IMAGENET1K_V1")
    assert first.preprocessing.transform.resize_size == 256
    assert first.class_names == imagenet_classes()
    assert first.notes == ()
    placed.unlink()
    second = load_pretrained("resnet18", "DEFAULT")  # from the cache alone
    np.testing.assert_array_equal(first.model.conv1.kernel[...], second.model.conv1.kernel[...])
    name = published.file_name.replace(".pth", ".safetensors")
    assert {path.name for path in (tmp_path / "cache" / "weights").iterdir()} == {name, f"{name}.sha256"}


def test_damaged_file_in_place_is_named(published, file, tmp_path):
    placed = tmp_path / "cache" / "weights" / published.file_name
    placed.parent.mkdir(parents=True)
    placed.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(resnet_flax.UserError, match=f"is damaged: its SHA-256 does not begin with {published.hash}"):
        load_pretrained("resnet18", "IMAGENET1K_V1")


def test_download_is_checked_converted_and_removed(published, file, tmp_path, monkeypatch):
    calls = []

    def download(url, path, hash_prefix):
        calls.append((url, hash_prefix))
        Path(path).write_bytes(file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load_pretrained("resnet18", "IMAGENET1K_V1")
    load_pretrained("resnet18", "IMAGENET1K_V1")
    assert calls == [(published.url, published.hash)]
    assert {path.suffix for path in (tmp_path / "cache" / "weights").iterdir()} == {".safetensors", ".sha256"}


def test_offline_error_has_the_url_and_where_to_put_the_file(published, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(resnet_flax.UserError) as raised:
        load_pretrained("resnet18", "IMAGENET1K_V1")
    assert published.url in str(raised.value)
    assert f"put it at {tmp_path / 'cache' / 'weights' / published.file_name}" in str(raised.value)


def test_new_head_is_logged_and_the_rest_kept(original, file, caplog):
    model = resnet_flax.create_model("resnet18", weights=file, num_classes=4, rngs=nnx.Rngs(5))
    assert "the head is new: 4 classes instead of 1000" in caplog.text
    assert model.fc.kernel.shape == (512, 4)
    assert model.fc.bias[...].any()
    np.testing.assert_array_equal(model.conv1.kernel[...], original.conv1.weight.detach().permute(2, 3, 1, 0))
    loaded = load_pretrained("resnet18", file, num_classes=4)
    assert loaded.class_names is None
    assert any("the head is new" in note for note in loaded.notes)


def test_weights_with_stochastic_depth_can_be_trained(file):
    models = [create_model("resnet18", weights=file, stochastic_depth=0.5, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1)]
    for model in models:
        model.train()
    first, again, other = (model.layer4[1](jnp.ones((8, 2, 2, 512))) for model in models)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dropped_head_gives_features(original, file):
    loaded = load_pretrained(None, file, num_classes=0)
    assert loaded.architecture == "resnet18"
    assert loaded.model.fc is None
    assert nnx.eval_shape(lambda m, x: m(x), loaded.model, jnp.ones((2, 32, 32, 3))).shape == (2, 512)


def test_stem_for_one_channel_sees_a_grey_image_as_its_copies(original):
    weight = original.conv1.weight.detach().numpy()
    grey = adapt_stem(weight, 1)
    x = torch.randn(1, 1, 16, 16)
    copies, colours = x.double().repeat(1, 3, 1, 1), original.conv1.weight.detach().double()
    expected, sizes = (torch.nn.functional.conv2d(*pair) for pair in ((copies, colours), (copies.abs(), colours.abs())))
    ours = torch.nn.functional.conv2d(x.double(), torch.from_numpy(grey).double())
    assert_rounded(ours, expected, 3, sizes)  # the sum of a kernel's three colours, rounded to float32


def test_stem_for_four_channels_repeats_and_scales(original):
    weight = original.conv1.weight.detach().numpy()
    four = adapt_stem(weight, 4)
    assert four.shape == (64, 4, 7, 7)
    np.testing.assert_allclose(four[:, 3], weight[:, 0] * 0.75)
    np.testing.assert_allclose(four[:, :3], weight * 0.75)


def test_stem_change_is_noted(file):
    loaded = load_pretrained("resnet18", file, in_channels=4)
    assert loaded.model.in_channels == loaded.model.conv1.in_features == 4
    assert any("adapted from 3 to 4 channels" in note for note in loaded.notes)


def test_metadata_of_a_file_is_used(tmp_path, original):
    preprocessing = Preprocessing(EvaluationTransform(30, 28), (0.5,), (0.25,))
    names = [f"class {i}" for i in range(1000)]
    tensors = {key: tensor.numpy() for key, tensor in original.state_dict().items()}
    write_checkpoint(tmp_path / "a.safetensors", tensors, metadata_of("resnet18", preprocessing, names))
    loaded = load_pretrained(None, tmp_path / "a.safetensors")
    assert loaded.preprocessing == preprocessing
    assert loaded.class_names == tuple(names)
    assert loaded.notes == ()
    write_checkpoint(tmp_path / "b.safetensors", tensors, {"class_names": "tench, goldfish"})
    with pytest.raises(ParityError, match="the class_names in the metadata .* cannot be read"):
        load_pretrained(None, tmp_path / "b.safetensors")
    write_checkpoint(tmp_path / "c.safetensors", tensors, metadata_of("resnet18", preprocessing, names[:2]))
    with pytest.raises(resnet_flax.UserError, match="has 1,000 classes, but 2 class names came with it"):
        load_pretrained(None, tmp_path / "c.safetensors")
    assert load_pretrained(None, tmp_path / "c.safetensors", class_names=names).class_names == tuple(names)
    assert load_pretrained(None, tmp_path / "c.safetensors", num_classes=7).class_names is None


def test_metadata_survives():
    preprocessing, origin = Preprocessing(EvaluationTransform(30, 28), (0.5,), (0.25,)), {"module.fc.bias": "float16"}
    kept = Metadata(metadata_of("residual18_xavier", preprocessing, ("a", "b"), origin))
    assert (kept.architecture, kept.preprocessing, kept.class_names, kept.origin) == (
        "residual18", preprocessing, ("a", "b"), origin,
    )  # fmt: skip
    nothing = Metadata({"origin": "another program's"})
    assert (nothing.architecture, nothing.preprocessing, nothing.class_names, nothing.origin) == (None,) * 4


TIMM_CONFIG = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "input_size": [3, 160, 160], "crop_pct": 0.95, "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    },
}  # fmt: skip


def test_grey_weights_without_metadata_get_one_mean(tmp_path):
    model = create_model("residual18", rngs=nnx.Rngs(0))
    write_checkpoint(tmp_path / "a.safetensors", to_torch(model))
    loaded = load_pretrained(None, tmp_path / "a.safetensors")
    assert not loaded.says_preprocessing
    assert loaded.preprocessing.mean == (pytest.approx(np.mean(Preprocessing().mean)),)
    images = np.zeros((1, 40, 40, 1), np.uint8)
    assert make_apply(loaded)(images)["probabilities"].shape == (1, 10)


def test_hub_weights_come_with_timms_preprocessing(tmp_path, original, monkeypatch):
    from safetensors.torch import save_file

    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, revision: tmp_path / name)
    loaded = load_pretrained(None, "hf-hub:timm/resnet18.tv_in1k")
    assert loaded.architecture == "resnet18"
    assert loaded.preprocessing == Preprocessing(
        EvaluationTransform(168, 160, "bicubic"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    )


def test_hub_weights_of_transformers(tmp_path, original, monkeypatch):
    from safetensors.torch import save_file

    from tests.resnet_flax.weights.others import SCHEMES

    to_theirs = SCHEMES["Hugging Face"]
    save_file({to_theirs(k): t for k, t in original.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): f"c{i}" for i in range(1000)}}))
    config = {
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.485] * 3,
        "image_std": [1, 1, 1],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, revision: tmp_path / name)
    loaded = load_pretrained("resnet18", "hf-hub:microsoft/resnet-18")
    assert loaded.class_names[:2] == ("c0", "c1")
    assert loaded.preprocessing == Preprocessing(EvaluationTransform(256, 224, "bicubic"), (0.485,) * 3, (1, 1, 1))


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(resnet_flax.UserError, match="cannot get model.safetensors of hf-hub:nobody/nothing"):
        load_pretrained("resnet18", "hf-hub:nobody/nothing")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet18", "IMAGENET1K_V2", "resnet18 has no weights IMAGENET1K_V2; it has IMAGENET1K_V1"),
        ("residual18", "DEFAULT", "no published weights of residual18"),
        ("resnet18", "nowhere.pth", "no weights 'nowhere.pth': expected a file, hf-hub:.*IMAGENET1K_V1 or DEFAULT"),
        (None, "DEFAULT", "choose one with --model"),
        ("resnet51", "DEFAULT", "did you mean resnet50"),
    ],
)
def test_weights_that_do_not_exist(name, weights, message):
    with pytest.raises(resnet_flax.UserError, match=message):
        load_pretrained(name, weights)


def test_weights_of_another_network(file):
    with pytest.raises(resnet_flax.UserError, match="holds a resnet18, not a resnet34"):
        resnet_flax.create_model("resnet34", weights=file)
