"""Distillation: loss and steps against torch's, on one device and four, resuming, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
import resnet_flax
from parity import to_torch
from parity.conversion.checkpoints import write_checkpoint
from resnet_flax.data import EvaluationTransform
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.training.distillation import TaughtStep, Teacher, load_teacher, soft_loss
from resnet_flax.training.settings import configured
from resnet_flax.training.sharding import data_mesh, replicated, sharded
from resnet_flax.training.state import Network
from resnet_flax.weights.metadata import metadata_of
from tests.resnet_flax.training.small import OPTIONS, run, use_small_network
from tests.resnet_flax.training.test_loop import assert_same_state, final_state
from tests.resnet_flax.training.test_step import RATE, build, in_torch, torch_tiny
from tests.resnet_flax.training.tiny import Tiny, batches, randomised

torch = pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def teacher(temperature=3.0, weight=0.7):
    """A randomised Tiny of other weights than the student's."""
    model = Tiny(param_dtype=jnp.float64, rngs=nnx.Rngs(5))
    network = Network(model)
    arrays = {n: jnp.asarray(v) for n, v in randomised(network, network.arrays(model), np.float64).items()}
    return Teacher(network, arrays, temperature, weight)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_and_its_gradient_are_torchs(float64, temperature):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 6, 5)) * 3
    value, grad = jax.value_and_grad(soft_loss)(jnp.asarray(ours), jnp.asarray(theirs), temperature)
    student = torch.tensor(ours, requires_grad=True)
    expected = temperature**2 * torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(student / temperature, 1), torch.softmax(torch.tensor(theirs) / temperature, 1)
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-13)
    np.testing.assert_allclose(grad, student.grad.numpy(), rtol=1e-12, atol=1e-15)


def taught(accumulate=1, devices=1):
    """(network, state, step) as `build`, of a student that `teacher()` teaches."""
    mesh = data_mesh(jax.devices()[:devices])
    network, state, step = build(teacher=teacher(), accumulate=accumulate, mesh=mesh if devices > 1 else None)
    place = replicated(mesh) if devices > 1 else jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return network, jax.device_put(state, place), TaughtStep(step, teacher().arrays, place), mesh


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_a_torch_loop(float64, accumulate):
    network, state, step, _ = taught(accumulate)
    student = torch_tiny(network, state)
    master = torch_tiny(network, build()[1])
    master.load_state_dict({n: torch.tensor(v) for n, v in to_torch(network.model(teacher().arrays)).items()})
    master.eval()
    optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, weight_decay=0.01)
    student.train()
    for batch in batches(3, 8):
        state, metrics = step(state, batch)
        optimizer.zero_grad()
        total = 0.0
        for part in np.split(np.arange(8), accumulate):
            images, labels = in_torch(batch, slice(part[0], part[-1] + 1))
            logits = student(images)
            with torch.no_grad():
                soft = torch.softmax(master(images) / 3, 1)
            divergence = torch.nn.functional.kl_div(torch.log_softmax(logits / 3, 1), soft, reduction="batchmean")
            loss = (0.3 * torch.nn.functional.cross_entropy(logits, labels) + 0.7 * 9 * divergence) / accumulate
            loss.backward()
            total += loss.item()
        optimizer.step()
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-10)
    ours = to_torch(network.model({**state["params"], **state["statistics"]}))
    for name, tensor in student.state_dict().items():
        np.testing.assert_allclose(ours[name], tensor.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


SHARDED = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from tests.resnet_flax.training.test_distillation import steps_on
one, four = steps_on(1), steps_on(4)
for name, array in one.items():
    np.testing.assert_allclose(four[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
print(len(one))
"""


def steps_on(devices):
    """The parameters and the loss after two steps in which the norms stay still, on so many devices."""
    mesh = data_mesh(jax.devices()[:devices])
    assert mesh.size == devices
    _, state, step = build(("bn1", "bn2"), teacher=teacher(), mesh=mesh if devices > 1 else None)
    step = TaughtStep(step, teacher().arrays, replicated(mesh))
    state = jax.device_put(state, replicated(mesh))
    for batch in batches(2, 8):
        state, metrics = step(state, jax.device_put(batch, sharded(mesh)))
    return {**{n: np.asarray(x) for n, x in state["params"].items()}, "loss": np.asarray(metrics["loss"])}


def test_four_devices_compute_what_one_does():
    devices = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **devices}, check=False)
    assert done.stdout == "6\n", done.stderr


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """weights(**changes) makes a file of a resnet18's random weights; the student is the small network."""

    def write(*, classes=64, channels=1, mean=(0.5,), names=None, says=True):
        model = resnet_flax.create_model("resnet18", num_classes=classes, in_channels=channels, small_images=True)
        preprocessing = Preprocessing(EvaluationTransform(8, 8, "bilinear"), mean, (0.5,))
        names = names or [str(number) for number in range(classes)]
        metadata = metadata_of("resnet18", preprocessing, names) if says else {}
        write_checkpoint(tmp_path / "teacher.safetensors", parity.to_torch(model), metadata)
        return "teacher.safetensors"

    use_small_network(monkeypatch, tmp_path)
    return write


def test_a_resumed_run_is_taught_as_one_left_alone(weights, capsys):
    name = weights()
    options = [*OPTIONS, "--schedule", "constant", "--mixup", "0.2", "--teacher", name]
    assert run("digits", *options, "--epochs", "2", "--workdir", "whole") == 0
    assert run("digits", *options, "--epochs", "1", "--workdir", "parts") == 0
    assert run("--resume", "--workdir", "parts", "--epochs", "2") == 0
    assert "teacher.safetensors, 0.5 of the loss, at temperature 4\n" in capsys.readouterr().out
    assert_same_state(final_state(Path("parts")), final_state(Path("whole")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 5}, r"^the teacher .*teacher.safetensors has 5 classes and synthetic:.* has 64; choose another$"),
        ({"channels": 3, "mean": (0.5,) * 3}, r"has 3 input channels and synthetic:8x8x1:64 has 1; choose another$"),
        ({"mean": (0.25,)}, r"takes images of mean 0.25, and this run's have 0.5; .*: pass --mean 0.25, or choose"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(weights, changes, sentence):
    name = weights(**changes)
    with pytest.raises(UserError, match=sentence):
        run("digits", *OPTIONS, "--teacher", name, "--workdir", "one")
    assert not Path("one").exists()


def test_other_names_and_no_preprocessing_are_notes(weights):
    config = configured("digits", {"teacher": weights(names=["one", *map(str, range(1, 64))]), "mean": (0.5,)})
    names = [str(number) for number in range(64)]
    (note,) = load_teacher(config, 64, 1).warnings(names)
    assert note.startswith("class 0 is 'one' to the teacher and '0' in the data; unless")
    weights(says=False)
    (note,) = load_teacher(config, 64, 1).warnings(names)
    assert note == "teacher: no preprocessing came with teacher.safetensors; it gets this run's images"


def test_a_teacher_by_name_needs_its_architecture(weights):
    config = configured("digits", {"teacher": "DEFAULT"})
    with pytest.raises(
        UserError, match=r"^there is no file DEFAULT; a teacher by torchvision's name needs --teacher-mod"
    ):
        load_teacher(config, 64, 1)


def test_settings_that_contradict_it(weights):
    with pytest.raises(UserError, match=r"^--teacher-model needs --teacher"):
        run("digits", *OPTIONS, "--teacher-model", "resnet18")
    with pytest.raises(UserError, match=r"cannot be used with --teacher, which needs the images; remove it"):
        run("digits", *OPTIONS, "--teacher", "x", "--cache-features", "--train-transform.padding", "0")


def test_dry_run_counts_the_teacher(weights, capsys):
    name = weights()
    assert run("digits", *OPTIONS, "--dry-run", "--teacher", name) == 0
    assert "teacher     teacher.safetensors: 11,2" in capsys.readouterr().out
