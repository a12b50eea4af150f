"""Weights in files and folders of other programs, with real values: what is read is what their authors compute with."""

import argparse
import json
import pickle
import socket
import warnings
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from flax import nnx

import parity
import parity.__main__
import resnet_flax
from parity.conversion.checkpoints import read_checkpoint, write_checkpoint
from parity.errors import ParityError, UsageError
from resnet_flax.errors import UserError
from resnet_flax.weights.arithmetic import ACTIVATIONS, arithmetic_of, model_options
from resnet_flax.weights.files import read_weights, write_weights
from tests.resnet_flax.weights.others import SCHEMES, haiku, hugging_face_flax, jax_resnet, linen_example

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from tests.numerics import assert_close_to_torch
from tests.parity.conversion.test_convert import assert_same_bytes


@pytest.fixture(scope="module")
def network():
    network = torchvision.models.resnet18(num_classes=7).eval()
    parity.randomize(None, network)
    return network


@pytest.fixture(scope="module")
def arrays(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def without_counters(arrays):
    return {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


def nested(flat):
    tree = {}
    for name, array in flat.items():
        *lead, leaf = name.split(".")
        here = tree
        for part in lead:
            here = here.setdefault(part, {})
        here[leaf] = np.ascontiguousarray(array)
    return tree


def write_npz(path: Path, flat):
    np.savez(path, **flat)


def write_msgpack(path: Path, flat):
    state = {"step": np.int32(3), "opt_state": {"0": nested(flat)}, **nested(flat)}
    path.write_bytes(flax.serialization.msgpack_serialize(state))


def write_pickle(path: Path, flat):
    path.write_bytes(pickle.dumps({"model": dict(flat), "__author__": "someone", "best": np.float64(0.7)}))


def write_orbax_directory(path: Path, flat):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), nested(flat))


@pytest.mark.parametrize("write", [write_npz, write_msgpack, write_pickle, write_orbax_directory])
@pytest.mark.parametrize("layout", [linen_example, jax_resnet, haiku, hugging_face_flax])
def test_flax_parameters_are_read_with_their_layouts(layout, write, arrays, tmp_path):
    if layout is not jax_resnet and write is not write_npz:
        pytest.skip("each layout is read alike from every format; one goes through all of them")
    suffix = {write_npz: ".npz", write_msgpack: ".msgpack", write_pickle: ".pkl"}.get(write, "")
    write(tmp_path / f"params{suffix}", layout(arrays))
    weights, expected = read_weights(tmp_path / f"params{suffix}"), without_counters(arrays)
    assert_same_bytes({name: np.ascontiguousarray(weights.state_dict[name]) for name in expected}, expected)
    model = weights.to_model()
    write_weights(tmp_path / "back.pth", model, weights)
    assert_same_bytes(read_checkpoint(tmp_path / "back.pth").tensors, expected)


def test_same_padding_is_pytorchs_at_odd_sizes_only():
    pads = lambda size: jax.lax.padtype_to_pads((size, size), (3, 3), (2, 2), "SAME")  # noqa: E731
    assert pads(57) == [(1, 1), (1, 1)]
    assert pads(56) == [(0, 1), (0, 1)]


def test_a_pickle_of_code_is_not_run(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": socket.gethostname}))
    with pytest.raises(ParityError, match=r"gethostname.*nothing in it was executed"):
        read_weights(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(b"no pickle")
    with pytest.raises(ParityError, match="not a pickle|nothing in it was executed"):
        read_weights(tmp_path / "b.pkl")


def test_numpy_beside_the_tensors(network, arrays, tmp_path):
    content = {
        "state_dict": network.state_dict(),
        "best_acc": np.float64(0.71),
        "confusion": np.ones((3, 3)),
        "names": np.array(["a", "b"]),
    }
    torch.save(content, tmp_path / "a.pth")
    assert_same_bytes(read_weights(tmp_path / "a.pth").state_dict, arrays)


@pytest.mark.parametrize(
    "beside",
    [
        {"arch": "resnetblur18"},
        {"args": argparse.Namespace(model="resnetblur18.tag_in1k", lr=0.1)},
        {"hyper_parameters": {"backbone": "timm/resnetblur18"}},
    ],
)
def test_a_checkpoint_that_names_its_network_is_believed(beside, network, arrays, tmp_path):
    torch.save({"state_dict": network.state_dict(), "epoch": 3, **beside}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.identity.architecture == "resnetblur18"
    assert not weights.doubts
    torch.save({"state_dict": network.state_dict(), "arch": "resnet34"}, tmp_path / "a.pth")
    assert "nothing that came with the weights names one of them" in str(read_weights(tmp_path / "a.pth").doubts[0])


def test_torchscript_is_refused_with_the_line_that_reads_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(ParityError, match=r"is a TorchScript archive.*torch\.jit\.load\(.*a\.pt'\)\.state_dict\(\)"):
        read_checkpoint(tmp_path / "a.pt")


def test_quantised_weights_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        torch.save({"fc.weight": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)}, tmp_path / "a.pth")
    with pytest.raises(ParityError, match=r"fc\.weight is quantised .*dequantize\(\)"):
        read_checkpoint(tmp_path / "a.pth")


def test_folders_and_shards(network, arrays, tmp_path):
    names = list(arrays)
    whole, many = tmp_path / "whole", tmp_path / "many"
    whole.mkdir()
    many.mkdir()
    torch.save(network.state_dict(), whole / "pytorch_model.bin")
    assert_same_bytes(read_weights(whole).state_dict, arrays)
    files = [many / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, part in zip(files, (names[:60], names[60:]), strict=True):
        write_checkpoint(file, {name: arrays[name] for name in part})
    index = many / "model.safetensors.index.json"
    weight_map = {name: files[i >= 60].name for i, name in enumerate(names)}
    index.write_text(json.dumps({"weight_map": weight_map}))
    for source in (many, index, files[1]):
        weights = read_weights(source)
        assert_same_bytes({name: weights.state_dict[name] for name in names}, arrays)
    files[0].unlink()
    for source in (many, index, files[1]):
        with pytest.raises(ParityError, match="model-00001-of-00002.safetensors of them are missing from its folder"):
            read_weights(source)
    index.write_text("{}")
    with pytest.raises(ParityError, match="is not an index of weights"):
        read_weights(many)


def test_reparametrised_weights_are_computed_as_pytorch_computes_them(tmp_path):
    from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

    network = torchvision.models.resnet18(num_classes=2)
    parity.randomize(None, network)
    parametrizations.weight_norm(network.layer1[0].conv1)
    parametrizations.spectral_norm(network.layer1[0].conv2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older forms are deprecated, and their files are still there
        weight_norm(network.layer1[1].conv1)
        spectral_norm(network.layer1[1].conv2)
    prune.random_unstructured(network.fc, "weight", amount=0.5)
    network.eval()(torch.zeros(1, 3, 32, 32))
    torch.save(network.state_dict(), tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    for path in ("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "fc"):
        expected = network.get_submodule(path).weight.detach().numpy()
        np.testing.assert_array_equal(weights.state_dict[f"{path}.weight"], expected, err_msg=path)
    assert sum("computed as PyTorch computes them" in str(note) for note in weights.notes) == 3
    weights.to_model()


def test_folded_norms_give_the_folded_networks_outputs(network, tmp_path):
    from copy import deepcopy

    from torch.nn.utils.fusion import fuse_conv_bn_eval

    fused = deepcopy(network)
    for path, module in list(fused.named_modules()):
        pairs = [("conv1", "bn1"), ("conv2", "bn2")] + ([("0", "1")] if path.endswith("downsample") else [])
        for convolution, norm in pairs:
            if hasattr(module, convolution) and hasattr(module, norm):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, torch.nn.Identity())
    torch.save(fused.state_dict(), tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    model = weights.to_model()
    images = parity.random_inputs((2, 33, 40, 3))
    assert_close_to_torch({"output": nnx.jit(model)(images)}, fused, images)
    write_weights(tmp_path / "b.pth", model, weights)
    assert_same_bytes(read_checkpoint(tmp_path / "b.pth").tensors, fused.state_dict())


CONFIG = {
    "architecture": "resnet18",
    "num_classes": 7,
    "model_args": {"act_layer": "gelu"},
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96], "crop_pct": 0.96},
}
LABELS = {str(i): f"class {i}" for i in range(7)}
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 224}, "crop_pct": 0.875}


OF_TIMM = CONFIG | {
    "label_names": list(LABELS.values()),
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224], "crop_pct": 0.875},
}


@pytest.mark.parametrize("destination", ["b.safetensors", "b"])
@pytest.mark.parametrize(
    ("config", "options", "doubted"),
    [({"id2label": LABELS}, {}, True), (OF_TIMM, {"activation": "gelu"}, False)],
    ids=["Hugging Face", "timm"],
)
def test_what_was_decided_stays_with_the_weights(config, options, doubted, destination, arrays, tmp_path):
    source = tmp_path / "from"
    source.mkdir()
    write_checkpoint(source / "maskrcnn_r18.safetensors", arrays)
    (source / "config.json").write_text(json.dumps(config))
    (source / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    first = read_weights(source / "maskrcnn_r18.safetensors")
    assert first.options == options
    assert any("detection network" in doubt.text for doubt in first.doubts) == doubted
    assert parity.__main__.main(["convert", str(first.source), str(tmp_path / destination)]) == 0
    again = read_weights(tmp_path / destination)
    assert (again.options, again.doubts) == (first.options, first.doubts)
    loaded = resnet_flax.load_pretrained(None, tmp_path / destination)
    assert loaded.model.activation is ACTIVATIONS[options.get("activation", "relu")]
    assert loaded.preprocessing.transform.resize_size == 256
    assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
    assert loaded.class_names == tuple(LABELS.values())
    assert any("detection network" in note for note in loaded.notes) == doubted
    settled = resnet_flax.load_pretrained(None, tmp_path / destination, norm_epsilon=1e-5)
    assert not any("detection network" in note for note in settled.notes)


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"activation": "silu"},
        {"norm_epsilon": 0.0},
        {"output_stride": 8},
        {"output_stride": 16},
        {"replace_stride_with_dilation": [True, False, True]},
        {"last_stride": 1},
        {"stride_in_first_1x1": True, "max_pool_ceil": True},
        {"aa_layer": "blur", "global_pool": "catavgmax"},
    ],
)
@pytest.mark.parametrize("name", ["resnet26", "ecaresnet26t", "test_resnet"])
def test_the_arithmetic_of_a_model_is_the_text_that_made_it(text, name):
    if name == "test_resnet" and "stride_in_first_1x1" in text:
        pytest.skip("its BasicBlocks have no 1x1")
    build = lambda: resnet_flax.models.build_model(name, rngs=nnx.Rngs(0), **model_options(text, {}))  # noqa: E731
    assert arithmetic_of(nnx.eval_shape(build), name) == text


def test_the_arithmetic_of_an_architectures_own_row_is_no_text():
    model = nnx.eval_shape(lambda: resnet_flax.models.build_model("resnetaa50", rngs=nnx.Rngs(0)))
    assert arithmetic_of(model, "resnetaa50") == {}
    assert arithmetic_of(model, "resnet50") == {"aa_layer": "avg"}
    assert model_options({"output_stride": 8}, {"replace_stride_with_dilation": (False, False, True)}) == {
        "replace_stride_with_dilation": (False, False, True)
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that fills a cache as huggingface_hub does; the network is closed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args, **kwargs):
        raise AssertionError(f"tried to reach the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    def fill(repository: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(snapshot.name)
        return snapshot

    return fill


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.mine_in1k", "resnet18.mine_in1k"])
def test_timms_layout_from_a_filled_cache(name, hub, arrays):
    snapshot = hub("timm/resnet18.mine_in1k")
    write_checkpoint(snapshot / "model.safetensors", arrays)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    loaded = resnet_flax.load_pretrained(None, name)
    assert loaded.model.activation is ACTIVATIONS["gelu"]
    assert loaded.preprocessing.std == (0.4, 0.5, 0.6)
    assert loaded.notes == ()


def test_hugging_faces_layout_from_a_filled_cache(hub, network, arrays):
    snapshot = hub("someone/resnet-18")
    write_checkpoint(snapshot / "model.safetensors", {SCHEMES["Hugging Face"](n): a for n, a in arrays.items()})
    config = {
        "model_type": "resnet",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "layer_type": "basic",
    }
    config |= {"id2label": LABELS, "hidden_act": "relu", "num_channels": 3}
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"resample": 3}))
    loaded = resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")
    assert loaded.class_names == tuple(f"class {i}" for i in range(7))
    assert loaded.preprocessing.transform.interpolation == "bicubic"
    images = parity.random_inputs((2, 33, 40, 3))
    assert_close_to_torch({"output": nnx.jit(loaded.model)(images)}, network, images)
    (snapshot / "config.json").write_text(json.dumps(config | {"downsample_in_first_stage": True}))
    with pytest.raises(UserError, match="asks for downsample_in_first_stage = True"):
        resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")


def test_a_hub_without_config_is_noted(hub, arrays):
    write_checkpoint(hub("someone/resnet-18") / "model.safetensors", arrays)
    loaded = resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")
    assert any("has no config.json here" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("damaged", "text", "message"),
    [
        ("config.json", "{damaged", r"config\.json is not JSON"),
        ("config.json", "[1]", r"config\.json holds a list and not a JSON object"),
        ("config.json", '{"architecture": 18, "model_args": {}}', "architecture = 18"),
        ("config.json", json.dumps(CONFIG | {"pretrained_cfg": {"mean": "half"}}), "pretrained_cfg.mean is 'half'"),
        ("config.json", json.dumps(CONFIG | {"num_classes": "7"}), "num_classes is '7', not a whole number"),
        ("config.json", json.dumps(CONFIG | {"model_args": ["gelu"]}), "model_args is .*, not a JSON object"),
        ("preprocessor_config.json", "", r"preprocessor_config\.json is not JSON"),
        ("preprocessor_config.json", json.dumps(PROCESSOR | {"size": None}), "size is None"),
        ("preprocessor_config.json", json.dumps(PROCESSOR | {"rescale_factor": 1 / 127.5}), "asks for rescale_factor"),
        ("model.safetensors", "", "is empty"),
    ],
)
def test_a_damaged_file_in_the_cache_is_one_sentence(damaged, text, message, hub, arrays):
    snapshot = hub("someone/resnet-18")
    write_checkpoint(snapshot / "model.safetensors", arrays)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "resnet", "id2label": LABELS}))
    (snapshot / damaged).write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")
    assert "\n" not in str(error.value)


def test_shards_from_a_filled_cache(hub, arrays):
    snapshot = hub("someone/resnet-18")
    names, weight_map = list(arrays), {}
    for number, part in enumerate((names[:50], names[50:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        write_checkpoint(snapshot / file, {name: arrays[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")
    assert_same_bytes(parity.to_torch(loaded.model), arrays)
    (snapshot / file).unlink()
    with pytest.raises(UserError, match=rf"cannot get {file} of hf-hub:someone/resnet-18"):
        resnet_flax.load_pretrained(None, "hf-hub:someone/resnet-18")
