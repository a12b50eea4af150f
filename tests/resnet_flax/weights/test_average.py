"""The mean of checkpoints, as the command writes it."""

import numpy as np
import pytest

from resnet_flax.__main__ import main
from resnet_flax.data import EvaluationTransform
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.weights.files import read_weights
from resnet_flax.weights.metadata import Metadata, metadata_of

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from parity.conversion.checkpoints import write_checkpoint
from tests.torch_models import randomized, torch_model

OWN = Preprocessing(EvaluationTransform(41, 37))


def average(*arguments) -> int:
    return main(["average", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three of one network, and one each with other classes and of another architecture."""
    folder, originals = tmp_path_factory.mktemp("checkpoints"), []
    names = [f"class {number}" for number in range(10)]
    for seed, kept in enumerate([names, names, names, names[::-1]]):
        originals.append(randomized(torch_model("cifar_resnet20"), seed).state_dict())
        arrays = {name: tensor.numpy() for name, tensor in originals[-1].items()}
        write_checkpoint(folder / f"{seed}.safetensors", arrays, metadata_of("cifar_resnet20", OWN, kept))
    other = {name: tensor.numpy() for name, tensor in torch_model("cifar_resnet20_projection").state_dict().items()}
    write_checkpoint(folder / "other.safetensors", other, metadata_of("cifar_resnet20_projection", OWN, names))
    return folder, originals[:3]


def test_every_value_is_the_mean(checkpoints, tmp_path):
    folder, originals = checkpoints
    files = [folder / f"{seed}.safetensors" for seed in range(3)]
    assert average(*files, "--out", tmp_path / "mean.safetensors") == 0
    mean = read_weights(tmp_path / "mean.safetensors")
    assert mean.identity.architecture == "cifar_resnet20"
    assert Metadata(mean.metadata).preprocessing == OWN
    assert Metadata(mean.metadata).class_names[-1] == "class 9"
    for name, array in mean.state_dict.items():
        values = [original[name].numpy() for original in originals]
        if array.dtype == np.float32:
            np.testing.assert_array_equal(array, np.mean(np.float64(values), axis=0).astype(np.float32), name)
        else:
            assert array == values[-1]


@pytest.mark.parametrize(
    ("files", "out", "message"),
    [
        (("0",), "m.safetensors", "an average needs at least two checkpoints; got 1"),
        (("0", "3"), "m.safetensors", "one with the classes"),
        (("0", "other"), "m.safetensors", "is a cifar_resnet20, 10 classes"),
        (("0", "absent"), "m.safetensors", "does not exist"),
        (("0", "1"), "m.npz", "the name must end in .safetensors, .pth or .pt"),
    ],
)
def test_what_has_no_mean_is_one_sentence_and_no_file(files, out, message, checkpoints, tmp_path, capsys):
    paths = [checkpoints[0] / f"{name}.safetensors" for name in files]
    assert average(*paths, "--out", tmp_path / out) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
