"""ONNX files: in onnxruntime as exact as PyTorch, with names and metadata; and parity's side that runs them."""

import copy
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import parity
from parity.conversion.checkpoints import write_checkpoint
from parity.conversion.convert import to_flax, to_torch
from resnet_flax.__main__ import main
from resnet_flax.data import EvaluationTransform
from resnet_flax.data.on_device import normalize
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.models import build_model
from resnet_flax.onnx_export import export_onnx
from resnet_flax.weights.metadata import metadata_of

torch = pytest.importorskip("torch", reason="compares with PyTorch")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from parity.__main__ import main as parity_main
from parity.checks.tolerance import relative
from tests import ROOT
from tests.numerics import TENSORS, assert_close_to_torch, torch_noise
from tests.torch_models import randomized, torch_model

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch.onnx
SIZE = (48, 40)
IMAGENET = Preprocessing()


def pair(name):
    """The PyTorch original with random values, and the Flax model with the same."""
    original = randomized(torch_model(name)).eval()
    model = nnx.eval_shape(lambda: build_model(name, rngs=nnx.Rngs(0)))
    model.eval()
    return original, to_flax(original.state_dict(), model)


@pytest.fixture(scope="module")
def resnet18():
    return pair("resnet18")


@pytest.fixture(scope="module")
def weights(resnet18, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    names = [f"class {number}" for number in range(1000)]
    preprocessing = Preprocessing(EvaluationTransform(52, 48))
    write_checkpoint(path, to_torch(resnet18[1]), metadata_of("resnet18", preprocessing, names))
    return path


@pytest.fixture(scope="module")
def exported(weights):
    path = weights.with_name("m.onnx")
    assert main(["export", "--weights", str(weights), "--out", str(path)]) == 0
    return path


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(name, marks=pytest.mark.full) for name in ("resnet50", "resnet50d", "seresnet50"))],
)
def test_it_is_as_exact_as_torch(name, resnet18, tmp_path):
    """Its error is at most 3 times the largest of PyTorch's own in float32, for any number of images."""
    original, model = resnet18 if name == "resnet18" else pair(name)
    export_onnx(model, name, tmp_path / "m.onnx", SIZE)
    session = session_of(tmp_path / "m.onnx")
    for batch in (1, 7):
        images = parity.random_inputs((batch, *SIZE, 3))
        noise = torch_noise(original, images, ("output",))
        (logits,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
        error = relative(logits, noise.oracle[TENSORS]["output"])
        floor = noise.floors[TENSORS]["output"]
        print(f"{name}, batch {batch}: error {error:.1e}, PyTorch's {floor:.1e}")
        assert error <= 3 * floor


def test_the_file_has_names_shapes_and_metadata(exported, resnet18):
    import onnx

    proto = onnx.load(exported)
    (images,), (logits,) = proto.graph.input, proto.graph.output
    assert [one.dim_param or one.dim_value for one in images.type.tensor_type.shape.dim][1:] == [3, 48, 48]
    assert images.type.tensor_type.shape.dim[0].dim_param
    assert (images.name, logits.name) == ("images", "logits")
    parameters = {name for name in resnet18[0].state_dict() if not name.endswith("num_batches_tracked")}
    assert parameters <= {one.name for one in proto.graph.initializer}
    kept = {one.key: one.value for one in proto.metadata_props}
    assert kept["architecture"] == "resnet18"
    assert kept["class_names"].startswith('["class 0", "class 1"')
    assert Preprocessing.from_metadata(kept) == Preprocessing(EvaluationTransform(52, 48))
    kinds = {node.op_type for node in proto.graph.node}
    assert {"Conv", "BatchNormalization", "MaxPool", "Gemm"} <= kinds
    assert "Transpose" not in kinds


def test_uint8_images_in_nhwc_and_a_fixed_batch(resnet18, tmp_path):
    export_onnx(
        resnet18[1], "resnet18", tmp_path / "m.onnx", SIZE, batch=2, layout="NHWC", preprocessing=IMAGENET, opset=20
    )
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    (logits,) = session_of(tmp_path / "m.onnx").run(None, {"images": images})
    floats = np.asarray(normalize(images, IMAGENET.mean, IMAGENET.std))
    assert_close_to_torch({"output": logits}, resnet18[0], floats)


def check(*arguments) -> int:
    return parity_main(["check", "resnet18", "--batch", "3", *map(str, arguments)])


def test_parity_compares_a_file_with_both_networks(exported, weights, capsys):
    assert check("--weights", weights, "--onnx", exported) == 0
    out = capsys.readouterr().out
    assert "m.onnx in ONNX and resnet18 in PyTorch agree: float32" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines() if line.startswith(("forward", "activations"))]
    assert len(rows) == 4
    counts = [int(row[row.index("eval") + 1]) for row in rows]
    assert counts[0] == 1
    assert counts[1] >= 40  # every convolution, norm, block and stage, and the head


def test_parity_finds_a_file_of_other_weights(exported, resnet18):
    changed = copy.deepcopy(resnet18[0])
    changed.layer3[1].bn2.bias.data += 1e-3
    images = parity.random_inputs((2, 48, 48, 3)).transpose(0, 3, 1, 2)
    report = parity.check(exported, changed, images, precision="float32")
    assert not report.passed
    assert next(row.name for row in report.failures if row.check == "activations") == "layer3.1.bn2"
    assert "layer3.1.bn2.bias differs before anything is computed" in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--onnx", "{onnx}"), "--onnx needs --weights"),
        (("--onnx", "{onnx}", "--weights", "{weights}", "--precision", "float64"), "not in float64"),
        (("--onnx", "{onnx}", "--weights", "{weights}", "--checks", "gradients"), "serves the checks forward, activ"),
        (("--onnx", "{onnx}", "--weights", "{weights}", "--modes", "train"), "has eval mode only"),
        (("--onnx", "{absent}", "--weights", "{weights}"), "cannot read"),
        (("--onnx", "{broken}", "--weights", "{weights}"), "cannot be run by onnxruntime"),
        (
            ("--onnx", "{onnx}", "--weights", "{weights}", "--size", "33"),
            "takes inputs of shape ('batch', 3, 48, 48), not (3, 3, 33, 33)",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(arguments, message, exported, weights, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    values = {"onnx": exported, "weights": weights, "absent": tmp_path / "a.onnx", "broken": tmp_path / "broken.onnx"}
    assert check(*(argument.format(**values) for argument in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_example_runs_without_this_package(exported, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 60, 3), np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-I", ROOT / "docs" / "examples" / "run_onnx.py", exported, tmp_path / "a.png"]
    if subprocess.run([sys.executable, "-I", "-c", "import onnxruntime"], capture_output=True).returncode:
        pytest.skip("onnxruntime is not in this environment's own site-packages")
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert main(["predict", str(tmp_path / "a.png"), "--weights", str(exported.with_name("w.safetensors"))]) == 0
    assert shown.startswith("class ")
