"""push: a folder that timm, transformers, torchvision and this package load, offline, with equal logits."""

import json
import shutil
import typing

import huggingface_hub
import numpy as np
import pytest
from flax import nnx
from safetensors.torch import load_file, save_file

from resnet_flax.__main__ import main
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.transforms import EvaluationTransform
from resnet_flax.models import ARCHITECTURES, build_model
from resnet_flax.weights.arithmetic import ACTIVATIONS
from resnet_flax.weights.config import read_config
from resnet_flax.weights.load import load_pretrained
from resnet_flax.weights.metadata import metadata_of
from resnet_flax.weights.timm_config import timm_config

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")
timm = pytest.importorskip("timm", reason="compares with PyTorch")

from tests.numerics import assert_close_to_torch
from tests.torch_models import nchw, randomized, torch_model

NAMES = tuple(f"a <b> | {number}" for number in range(7))
OWN = Preprocessing(EvaluationTransform(41, 37, "bicubic"), (0.5,), (0.25,))


def push(*arguments) -> int:
    return main(["push", *map(str, arguments)])


@pytest.fixture(scope="module")
def original():
    """Another stem, activation, pool, number of channels and of classes than resnet18's."""
    options = {"num_classes": 7, "in_chans": 1, "act_layer": "silu", "global_pool": "avgmax"}
    return randomized(timm.create_model("resnet10t", **options)).eval()


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    options = {"activation": "silu", "global_pool": "avgmax"}
    save_file(dict(original.state_dict()), path, metadata_of("resnet10t", OWN, NAMES, options=options))
    return path


@pytest.fixture(scope="module")
def pushed(weights, tmp_path_factory):
    parent = tmp_path_factory.mktemp("pushed")
    evaluation = {"data": "d", "split": "val", "count": 9, "accuracy": 0.5, "top5": 1.0, "loss": 1.5}
    (parent / "evaluation.json").write_text(json.dumps(evaluation))
    row = {"name": "layer1|x", "check": "forward", "error": {"relative": 2e-15}}
    settings = {"architecture": "resnet10t", "frameworks": ["Flax", "PyTorch"], "precision": "float64"}
    (parent / "parity.json").write_text(json.dumps({"passed": True, "settings": settings, "comparisons": [row]}))
    reports = ["--evaluation", parent / "evaluation.json", "--parity", parent / "parity.json"]
    assert push("me/thing", "--weights", weights, "--to", parent / "repo", "--license", "mit", *reports) == 0
    return parent / "repo"


@pytest.fixture
def cached(pushed, tmp_path, monkeypatch):
    """The folder as the hub's cache would hold it, and no network."""
    repository = tmp_path / "models--me--thing"
    shutil.copytree(pushed, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "hf-hub:me/thing"


def images():
    return np.random.default_rng(0).normal(size=(3, 37, 37, 1)).astype(np.float32)


def test_timm_and_this_package_load_it_from_a_folder_and_from_the_hubs_cache(pushed, cached, original):
    x = nchw(images())
    with torch.no_grad():
        expected = original(x)
        for name in (f"local-dir:{pushed}", cached):
            loaded = timm.create_model(name, pretrained=True).eval()
            assert torch.equal(loaded(x), expected)
            data = timm.data.resolve_model_data_config(loaded)
            assert data["input_size"] == (1, 37, 37)
            assert (list(data["mean"]), list(data["std"]), data["interpolation"]) == ([0.5], [0.25], "bicubic")
            assert int(37 / data["crop_pct"]) == 41
            assert tuple(loaded.pretrained_cfg["label_names"]) == NAMES
    for weights in (pushed, cached):
        ours = load_pretrained(None, weights)
        assert ours.notes == ()
        assert ours.class_names == NAMES
        assert ours.preprocessing == OWN
        assert_close_to_torch({"output": np.asarray(ours.model(images()))}, original, images())


@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_it(pushed, original):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(pushed).eval()
    x = nchw(images())
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=x).logits, original(x))
    assert tuple(loaded.config.id2label.values()) == NAMES


def test_torchvision_loads_it_strictly(tmp_path):
    original = randomized(torchvision.models.resnet18(num_classes=5)).eval()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    assert push("me/thing", "--weights", tmp_path / "w.pth", "--to", tmp_path / "repo") == 0
    state_dict = load_file(tmp_path / "repo" / "model.safetensors")
    torchvision.models.resnet18(num_classes=5).load_state_dict(state_dict, strict=True)
    assert all(torch.equal(value, state_dict[name]) for name, value in original.state_dict().items())


def test_the_card_is_markdown_in_which_names_are_no_markup(pushed):
    text = (pushed / "README.md").read_text()
    assert huggingface_hub.ModelCard(text).data.license == "mit"
    assert {path.name for path in pushed.iterdir()} == {
        "README.md",
        "config.json",
        "evaluation.json",
        "model.safetensors",
        "parity.json",
    }
    body = text.split("---\n", 2)[2]
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(body)
    assert html.count("<table>") == 2
    assert "a &lt;b&gt; | 0, a &lt;b&gt; | 1" in html
    assert "<td>50.00%</td>" in html
    assert "2.0e-15, of layer1|x (forward)" in html
    assert html.count("<code class") == 4


def test_timm_has_every_architecture_and_activation_that_is_written_for_it():
    known = timm.list_models()
    assert {name for name, row in ARCHITECTURES.items() if row.is_in_timm} == set(ARCHITECTURES) & set(known)
    assert all(timm.layers.get_act_layer(name) is not None for name in ACTIVATIONS)


def test_the_share_of_the_crop_gives_the_same_sizes_again(tmp_path):
    model = nnx.eval_shape(lambda: build_model("resnet10t", num_classes=1, rngs=nnx.Rngs(0)))
    for crop in (1, 33, 224, 288):
        for resize in range(crop, 2 * crop + 40, 7):
            transform = EvaluationTransform(resize, crop)
            config = timm_config(model, "resnet10t", Preprocessing(transform), None, "mit")
            (tmp_path / "config.json").write_text(json.dumps(config.content))
            assert read_config(tmp_path).preprocessing.transform == transform


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("me/../thing", "--to", "{out}"), "'me/../thing' is not a name on the hub"),
        (("me/..", "--to", "{out}"), "'me/..' is not a name on the hub"),
        (("thing", "--to", "{out}"), "expected OWNER/NAME"),
        (("me/thing",), "pushing to the hub needs a token, and there is none"),
        (("me/thing", "--to", "{here}"), "exists; remove it or choose another name"),
        (("me/thing", "--to", "{out}/no/where"), "is not a directory"),
        (("me/thing", "--to", "{out}", "--evaluation", "{weights}"), "cannot be read as JSON"),
        (("me/thing", "--to", "{out}", "--parity", "{other}"), "has no usable passed, settings, comparisons"),
        (("me/thing", "--to", "{out}", "--parity", "{damaged}"), "is not a report of"),
        (("me/thing", "--to", "{out}", "--norm-epsilon", "0.01"), "the weights need norm_epsilon=0.01, for which timm"),
        (("me/thing", "--to", "{out}", "--crop", "48"), "crops 48 pixels of images that are resized to 41"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(arguments, message, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "damaged.json").write_text('{"passed": true, "settings": {}, "comparisons": [1]}')
    values = {"out": tmp_path / "out", "here": tmp_path, "weights": weights}
    values |= {name: tmp_path / f"{name}.json" for name in ("other", "damaged")}
    assert push(*(argument.format(**values) for argument in arguments), "--weights", weights) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.json", "other.json"]


class Hub:
    """In place of `huggingface_hub.HfApi`."""

    uploaded: typing.ClassVar[dict] = {}

    def create_repo(self, repository, *, private, exist_ok):
        assert (private, exist_ok) == (True, True)
        if repository == "me/refused":
            raise OSError("403 Forbidden\nmore")
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.uploaded[repo_id] = sorted(path.name for path in folder_path.iterdir())


def test_it_uploads_the_same_folder(weights, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push("me/thing", "--weights", weights, "--private") == 0
    assert Hub.uploaded == {"me/thing": ["README.md", "config.json", "model.safetensors"]}
    assert "https://hub/me/thing: README.md, config.json" in capsys.readouterr().out
    assert push("me/refused", "--weights", weights, "--private") == 2
    assert "cannot push to hf-hub:me/refused (403 Forbidden); --to DIR" in capsys.readouterr().err


def test_what_timm_lacks_is_a_warning(tmp_path, capsys):
    metadata = Preprocessing(EvaluationTransform(None, None)).to_metadata() | {"architecture": "cifar_resnet20"}
    save_file(dict(torch_model("cifar_resnet20").state_dict()), tmp_path / "w.safetensors", metadata)
    assert push("me/thing", "--weights", tmp_path / "w.safetensors", "--to", tmp_path / "repo") == 0
    err = capsys.readouterr().err
    assert "no --license was given" in err
    assert "timm has no cifar_resnet20: only resnet_flax can load it" in err
    assert "images are resized to 32 and cropped to 32" in err
    assert "library_name: flax" in (tmp_path / "repo" / "README.md").read_text()
    assert load_pretrained(None, tmp_path / "repo").architecture == "cifar_resnet20"
