"""Reading and writing weights, `parity convert` and `parity inspect`: every format, every naming, every bad file."""

import errno
import gc
import os
import pickle
import re
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import parity.__main__
from parity.conversion.checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from parity.conversion.orbax import orbax_reason
from parity.errors import ParityError
from resnet_flax.errors import UserError
from resnet_flax.models.originals import ResidualNet
from resnet_flax.weights.files import read_weights, write_weights
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.selection import layout_of, names_by_layout, select

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from tests.parity.conversion.test_convert import assert_same_bytes
from tests.resnet_flax.weights.others import SCHEMES, numbered
from tests.torch_models import (
    residual_blocks,
    residual_sequential,
    torch_model,
)


@pytest.fixture(scope="module")
def state_dict():
    """Of a ResNet-18 with 7 classes: 122 entries."""
    network = torchvision.models.resnet18(num_classes=7)
    parity.randomize(None, network)
    return network.state_dict()


def command(*arguments) -> int:
    return parity.__main__.main([str(argument) for argument in arguments])


def half(tensor):
    return tensor.half() if tensor.is_floating_point() else tensor


def double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


FORMS = {
    "plain": lambda sd: sd,
    "wrapped float16 with a prefix": lambda sd: {
        "epoch": 3,
        "state_dict": {"module." + key: half(tensor) for key, tensor in sd.items()},
    },
    "2017": lambda sd: {key: tensor for key, tensor in sd.items() if "num_batches" not in key},
    "float64": lambda sd: {key: double(tensor) for key, tensor in sd.items()},
    "bfloat16": lambda sd: {key: t.bfloat16() if t.is_floating_point() else t for key, t in sd.items()},
    "beside its name": lambda sd: {"model": "resnet18", "net": sd},
    "compiled": lambda sd: {"model": {"_orig_mod." + key: tensor for key, tensor in sd.items()}},
    "Hugging Face": lambda sd: {SCHEMES["Hugging Face"](key): tensor for key, tensor in sd.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_pth_to_safetensors_to_orbax_to_pth_is_exact(form, state_dict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = FORMS[form](state_dict)
    torch.save(content, "a.pth")
    assert command("convert", "a.pth", "b.safetensors") == 0
    assert command("convert", "b.safetensors", "c") == 0
    assert command("convert", "c", "d.pth") == 0
    original = next((entry for entry in content.values() if isinstance(entry, dict)), content)
    back = torch.load("d.pth", weights_only=True)
    assert list(back) == list(original)
    assert_same_bytes({key: parity.conversion.convert.as_numpy(tensor) for key, tensor in back.items()}, original)
    in_between = load_checkpoint("b.safetensors")
    assert in_between.keys() <= state_dict.keys()
    assert not list(tmp_path.glob(".*"))


def test_torchvision_names_on_request(state_dict, tmp_path):
    torch.save({"module." + key: tensor for key, tensor in state_dict.items()}, tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "orbax") == 0
    for source in ("a.pth", "orbax"):
        assert command("convert", tmp_path / source, tmp_path / "b.pth", "--names", "torchvision", "--force") == 0
        back = load_checkpoint(tmp_path / "b.pth")
        assert list(back) == list(state_dict)
        assert_same_bytes(back, state_dict)


def test_an_architecture_that_contradicts_the_shapes_is_ignored(state_dict, tmp_path):
    tensors = {name: tensor.numpy() for name, tensor in state_dict.items()}
    write_checkpoint(tmp_path / "a.safetensors", tensors, {"architecture": "resnet50"})
    assert read_weights(tmp_path / "a.safetensors").identity.architecture == "resnet18"


def test_files_by_another_name(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "a.safetensors")
    with pytest.raises(ParityError, match=r"is a PyTorch file with the wrong ending; rename it to \.pth"):
        read_checkpoint(tmp_path / "a.safetensors")
    write_checkpoint(tmp_path / "b.safetensors", {"a": np.ones(3, np.float32)})
    (tmp_path / "b.safetensors").rename(tmp_path / "b.pth")
    with pytest.raises(ParityError, match=r"is a safetensors file with the wrong ending; rename it to \.safetensors"):
        read_checkpoint(tmp_path / "b.pth")


def test_a_file_that_may_not_be_read(state_dict, tmp_path, monkeypatch):
    torch.save(state_dict, tmp_path / "a.pth")

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for function in ("os.open", "os.scandir"):  # root may read anything
        monkeypatch.setattr(function, refuse)
    for path in (tmp_path / "a.pth", tmp_path):
        with pytest.raises(ParityError, match="cannot be read: permission denied"):
            read_weights(path)


def test_file_formats_before_and_after_pytorch_1_6(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same_bytes(load_checkpoint(tmp_path / "a.pth"), state_dict)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("residual18", residual_blocks()),
        ("residual18_3x3", residual_sequential(3)),
        ("residual18", residual_sequential(1)),
    ],
)
def test_residual_networks_are_recognised_by_their_own_names(name, original, tmp_path):
    parity.randomize(None, original)
    torch.save(original.state_dict(), tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.identity == Identity(name, 10, 1, small_images=False)
    # Sequentials run in the order of their names: the same weights in the model of our names give the same logits.
    ours = ResidualNet(shortcut_kernel=3 if name == "residual18_3x3" else 1)
    ours.load_state_dict({key: torch.from_numpy(np.array(a)) for key, a in weights.state_dict.items()})
    images = torch.randn(2, 1, 40, 33)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), original.eval()(images))
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors") == 0
    assert command("convert", tmp_path / "b.safetensors", tmp_path / "c.pth") == 0
    assert_same_bytes(load_checkpoint(tmp_path / "c.pth"), original.state_dict())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.model."])
def test_naming_schemes_are_recognised_and_undone(scheme, prefix):
    arrays = numbered("resnet50")
    theirs = {prefix + SCHEMES[scheme](name): array for name, array in arrays.items()}
    assert len(theirs) == len(arrays)
    selection = select(theirs)
    inner = "resnet." if scheme == "Hugging Face" else ""
    assert (selection.layout.name, selection.prefix) == (scheme, prefix + inner)
    assert layout_of(theirs) == (selection.layout, selection.prefix)
    assert list(selection.names.values()) == list(arrays)
    assert not selection.dropped


def test_two_networks_in_one_file(state_dict, tmp_path):
    tensors = {"teacher." + name: tensor.clone() for name, tensor in state_dict.items()}
    torch.save({**tensors, **state_dict}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds 2 ResNets, under the prefixes 'teacher\.', ''; choose one"):
        read_weights(tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--prefix", "teacher") == 0
    assert_same_bytes(load_checkpoint(tmp_path / "b.safetensors"), state_dict)
    assert command("inspect", tmp_path / "a.pth", "--prefix", "student") == 2


def test_an_alias_is_accepted_and_the_architecture_named(tmp_path, capsys):
    torch.save(torch_model("residual18").state_dict(), tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    assert command("convert", tmp_path / "a.pth", out, "--arch", "residual18_xavier") == 0
    assert read_checkpoint(out).metadata["architecture"] == "residual18"
    assert command("inspect", out) == 0
    assert capsys.readouterr().out.count("architecture") == 1
    write_checkpoint(out, load_checkpoint(tmp_path / "a.pth"), {"architecture": "residual18_xavier"})  # an old file
    assert read_weights(out).identity.architecture == "residual18"
    weights = read_weights(out)
    old = replace(weights, identity=replace(weights.identity, architecture="residual18_xavier"))
    write_weights(tmp_path / "orbax", weights.to_model(), old)
    assert read_weights(tmp_path / "orbax").identity.architecture == "residual18"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: shapes | {"layer3.2.conv1.weight": (256, 256, 3, 3)}, "stages of 2, 2, 3, 2 blocks"),
        (
            lambda shapes: shapes | {"layer1.1.conv2.weight": (64, 64, 5, 5)},
            r"nearest is resnet18, but layer1.1.conv2.weight is \(64, 64, 5, 5\) and not \(64, 64, 3, 3\)",
        ),
        (lambda shapes: {n: s for n, s in shapes.items() if ".bn" not in n}, "entries of its stages are missing"),
        (lambda shapes: {n: s for n, s in shapes.items() if n != "conv1.weight"}, "there is no conv1.weight"),
        (lambda shapes: shapes | {"conv1.weight": (64, 27)}, r"conv1.weight is \(64, 27\)"),
    ],
)
def test_shapes_of_no_architecture(change, message):
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in torch_model("resnet18").state_dict().items()}
    with pytest.raises(UserError, match=message):
        identify(change(shapes))


def test_files_written_before_their_names_were_kept():
    names = list(numbered("resnet18"))
    theirs = [SCHEMES["Hugging Face"](name) for name in names]
    assert list(names_by_layout(theirs).values()) == names


def test_hugging_face_names_are_transformers_own():
    """Written out from the module tree of transformers' ResNetForImageClassification."""
    to_theirs = SCHEMES["Hugging Face"]
    assert to_theirs("conv1.weight") == "resnet.embedder.embedder.convolution.weight"
    assert to_theirs("bn1.running_var") == "resnet.embedder.embedder.normalization.running_var"
    assert to_theirs("layer2.0.conv3.weight") == "resnet.encoder.stages.1.layers.0.layer.2.convolution.weight"
    assert to_theirs("layer4.2.bn1.bias") == "resnet.encoder.stages.3.layers.2.layer.0.normalization.bias"
    assert to_theirs("layer2.0.downsample.0.weight") == "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"
    assert to_theirs("layer2.0.downsample.1.bias") == "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias"
    assert to_theirs("fc.bias") == "classifier.1.bias"


def test_inspect_describes_a_checkpoint(state_dict, tmp_path, capsys):
    state_dict = dict(state_dict)
    state_dict["bn1.weight"] = torch.full((64,), torch.nan)
    torch.save({"model": {"module." + k: half(t) for k, t in state_dict.items()}, "epoch": 3}, tmp_path / "a.pth")
    assert command("inspect", tmp_path / "a.pth") == 0
    out = capsys.readouterr().out
    for expected in (
        "resnet18", "classes +7", "11,180,103", "102 float16, 20 int64", "prefix 'module.'",
        "took the entry 'model' and dropped epoch", "(?m)^warning: bn1.weight has 64 values that are NaN or infinite",
    ):  # fmt: skip
        assert re.search(expected, out), out


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def _whole_module(path: Path):
    torch.save(torchvision.models.resnet18(), path)


def _not_a_resnet(path: Path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def _missing_entry(path: Path):
    state_dict = torchvision.models.resnet18(num_classes=2).state_dict()
    state_dict["layer1.0.bn2.wieght"] = state_dict.pop("layer1.0.bn2.weight")
    torch.save(state_dict, path)


def _entry(value):
    return lambda path: torch.save(torchvision.models.resnet18(num_classes=2).state_dict() | {"fc.bias": value}, path)


BAD_FILES = {
    "float8": (_entry(torch.zeros(2).to(torch.float8_e4m3fn)), r"fc\.bias is a tensor \(strided, float8_e4m3fn\)"),
    "sparse": (_entry(torch.eye(2)[0].to_sparse()), r"fc\.bias is a tensor \(sparse_coo, float32\)"),
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.touch(), r"is empty \(0 bytes\)"),
    "noise": (lambda path: path.write_bytes(b"\0" * 1000), "truncated or not"),
    "truncated": (
        lambda path: (_not_a_resnet(path), path.write_bytes(path.read_bytes()[:900])),
        "truncated or not a PyTorch file",
    ),
    "whole module": (_whole_module, r"torchvision\.models\.resnet\.ResNet.*nothing in it was executed.*state_dict\(\)"),
    "malicious": (lambda path: torch.save(Malicious(), path), "nothing in it was executed"),
    "malicious bare pickle": (lambda path: path.write_bytes(pickle.dumps(Malicious())), "nothing in it was executed"),
    "list": (lambda path: torch.save([torch.ones(2)], path), "holds a list, not a state_dict"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors, only epoch"),
    "another network": (_not_a_resnet, "no naming scheme of ResNets known here has the entries weight, bias"),
    "complex numbers": (_entry(torch.zeros(2, dtype=torch.complex64)), r"fc\.bias has complex numbers \(complex64\)"),
    "misspelt entry": (
        _missing_entry,
        r"(?s)a\.pth does not fit resnet18, the nearest.*layer1.0.bn2.weight \(64,\).*nearest: layer1.0.bn2.wieght",
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_get_one_message_and_leave_nothing(what, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = BAD_FILES[what]
    make(tmp_path / "a.pth")
    before = sorted(tmp_path.iterdir())
    assert command("convert", "a.pth", "b.safetensors") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("size", "message"), [(0, "is empty"), (4, "truncated or not"), (5000, "truncated or not")])
def test_bad_safetensors(size, message, state_dict, tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"a": np.ones(2000, np.float32)})
    os.truncate(tmp_path / "a.safetensors", size)
    with pytest.raises(ParityError, match=message):
        read_checkpoint(tmp_path / "a.safetensors")


def test_an_existing_destination_is_kept_without_force(state_dict, tmp_path, capsys):
    torch.save(state_dict, tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_text("precious")
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors") == 2
    assert "exists; --force overwrites a checkpoint" in capsys.readouterr().err
    assert (tmp_path / "b.safetensors").read_text() == "precious"
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--force") == 0
    assert_same_bytes(load_checkpoint(tmp_path / "b.safetensors"), state_dict)


def test_an_overwritten_file_appears_whole(state_dict, tmp_path):
    """Whoever has the old one open, or mapped, keeps it."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with path.open("rb") as old:
        write_checkpoint(path, {"fc.bias": state_dict["fc.bias"].numpy()})
        assert old.read() == b"precious"
    assert list(load_checkpoint(path)) == ["fc.bias"]
    (tmp_path / "another").touch()
    assert path.stat().st_mode == (tmp_path / "another").stat().st_mode  # a library's own file is private
    (tmp_path / "another").unlink()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(state_dict, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "real" / "b.safetensors")
    write_checkpoint(tmp_path / "a.safetensors", {"fc.bias": state_dict["fc.bias"].numpy()})
    assert (tmp_path / "a.safetensors").is_symlink()
    assert list(load_checkpoint(tmp_path / "real" / "b.safetensors")) == ["fc.bias"]


def test_force_replaces_an_orbax_checkpoint_but_no_other_directory(state_dict, tmp_path, capsys):
    torch.save(state_dict, tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "c") == 0
    assert command("convert", tmp_path / "a.pth", tmp_path / "c") == 2
    assert command("convert", tmp_path / "a.pth", tmp_path / "c", "--force") == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    capsys.readouterr()
    assert command("convert", tmp_path / "a.pth", tmp_path / "home", "--force") == 2
    assert "home is a directory that holds no checkpoint, and is kept" in capsys.readouterr().err
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_damaged_orbax_checkpoint_is_one_line(state_dict, tmp_path, capsys):
    torch.save(state_dict, tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "c") == 0
    largest = max(filter(Path.is_file, (tmp_path / "c").rglob("*")), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    capsys.readouterr()
    assert command("inspect", tmp_path / "c") == 2
    gc.collect()
    printed = capsys.readouterr().err
    assert "is not an Orbax checkpoint of weights, or is damaged" in printed
    assert len(printed.splitlines()) == 1  # Orbax abandons a hundred reads
    assert len(printed) < 500


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_training_run_is_no_checkpoint_but_has_one(state_dict, tmp_path, capsys):
    run = tmp_path / "runs" / "digits-1"
    (run / "checkpoints" / "22" / "state").mkdir(parents=True)
    write_checkpoint(run / "best.safetensors", {name: tensor.numpy() for name, tensor in state_dict.items()}, {})
    for path in (run, run / "checkpoints", run / "checkpoints" / "22"):
        assert command("inspect", path) == 2
        assert f"did you mean {run / 'best.safetensors'} ?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("destination", "message"),
    [("no/such/b.pth", "is not a directory"), ("b.onnx", "must end in"), ("/proc/b.safetensors", "cannot write")],
)
def test_unwritable_destinations(destination, message, state_dict, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state_dict, "a.pth")
    assert command("convert", "a.pth", destination) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(state_dict, tmp_path, capsys, monkeypatch):
    torch.save(state_dict, tmp_path / "a.pth")

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_what_libraries_make_of_a_full_disk(state_dict, tmp_path, monkeypatch):
    """Seen on a disk of 30 MB: PyTorch speaks of a position, Orbax has the reason at the end of 500 characters."""

    def torchs(*args):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 25874496 vs 25874392")

    monkeypatch.setattr(torch, "save", torchs)
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=4096))
    with pytest.raises(ParityError, match=r"cannot write .*d\.pth: No space left on device$"):
        write_checkpoint(tmp_path / "d.pth", {"a": np.ones(3, np.float32)})
    orbaxs = ValueError("RESOURCE_EXHAUSTED: " + 400 * "x" + " No space left on device [os_error_code='28']")
    assert orbax_reason(orbaxs) == "No space left on device"


def test_wrong_architecture_is_named(state_dict, tmp_path, capsys):
    torch.save(state_dict, tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--arch", "resnet50") == 2
    assert "holds a resnet18, not a resnet50" in capsys.readouterr().err


def test_without_torch_a_pth_names_the_extra_and_safetensors_work(state_dict, tmp_path, capsys, monkeypatch):
    torch.save(state_dict, tmp_path / "a.pth")
    assert command("convert", tmp_path / "a.pth", tmp_path / "b.safetensors") == 0
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert command("convert", tmp_path / "a.pth", tmp_path / "c.safetensors") == 2
    assert "pip install 'resnet-flax[torch]'" in capsys.readouterr().err
    assert command("convert", tmp_path / "b.safetensors", tmp_path / "c") == 0
    assert command("inspect", tmp_path / "c") == 0


def test_weights_become_a_model(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "a.pth")
    model = read_weights(tmp_path / "a.pth").to_model()
    assert model.num_classes == 7
    np.testing.assert_array_equal(model.fc.bias[...], state_dict["fc.bias"])
