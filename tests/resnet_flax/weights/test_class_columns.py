"""Which outputs a data set's class folders are, and a network that has only these."""

import numpy as np
import pytest
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.models import build_model
from resnet_flax.weights.class_columns import columns_of, restricted

WNIDS = [f"n{number:08}" for number in range(5, 3005, 3)]
NAMES = [f"name {number}" for number in range(1000)]


@pytest.fixture
def synsets(tmp_path):
    path = tmp_path / "synsets.txt"
    path.write_text("\n".join(WNIDS))
    return path


def test_classes_by_the_networks_own_names():
    assert columns_of(["a", "b", "c"], ["a", "b", "c"], 3) is None
    assert columns_of(["a", "c"], ["c", "b", "a"], 3).indices == [2, 0]
    assert columns_of(["a", "d"], ["c", "b", "a"], 3) is None
    assert columns_of(["a", "b"], None, 2) is None
    assert columns_of(["a"], ["a", "a", "b"], 3) is None  # which one is meant?


def test_imagenet_v2_has_numbers_as_folders():
    folders = sorted(str(number) for number in range(1000))
    columns = columns_of(folders, NAMES, 1000)
    assert columns.indices[:4] == [0, 1, 10, 100]
    assert sorted(columns.indices) == list(range(1000))
    assert columns_of(folders[:10], NAMES, 1000) is None  # ten folders called by numbers need not be ImageNet's
    assert columns_of(["0", "1"], None, 2) is None


def test_wnids_by_a_list(synsets):
    assert columns_of(WNIDS[7:2:-1], NAMES, 1000, synsets).indices == [7, 6, 5, 4, 3]
    with pytest.raises(UserError, match="^n00000006, n00000007 are not among ImageNet's 1,000 classes; remove"):
        columns_of([WNIDS[0], "n00000006", "n00000007"], NAMES, 1000, synsets)
    assert columns_of(["n00000006"], None, 10, synsets) is None
    synsets.write_text("n00000005\n")
    with pytest.raises(UserError, match="synsets.txt has 1 different wnids, and the network 1,000 classes"):
        columns_of(WNIDS[:2], NAMES, 1000, synsets)


def test_wnids_by_timms_list():
    wnids = pytest.importorskip("timm.data").ImageNetInfo().label_names()
    assert columns_of(["n01443537", "n01440764"], NAMES, 1000).indices == [1, 0]
    assert wnids == sorted(wnids)  # so a thousand folders are in the order of the outputs
    assert columns_of(wnids, NAMES, 1000) is None


def test_a_restricted_network_has_the_columns_of_the_logits():
    model = build_model("resnet18", num_classes=7, in_channels=1, small_images=True, rngs=nnx.Rngs(0))
    model.eval()
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    whole = model(images)
    part = restricted(model, [5, 0, 3])
    assert part.num_classes == 3
    np.testing.assert_allclose(part(images), whole[:, [5, 0, 3]], rtol=1e-6, atol=1e-6)
    assert model.num_classes == 7
    np.testing.assert_array_equal(model(images), whole)
