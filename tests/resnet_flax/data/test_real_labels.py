"""ImageNet-ReaL's labels: read, matched with images by name, and the accuracy by them."""

import json

import numpy as np
import pytest

from resnet_flax.data.real_labels import IMAGES, read_real_labels, real_accuracy, validation_numbers
from resnet_flax.errors import UserError


def test_accuracy_by_several_labels_skips_images_without():
    labels = [frozenset({1, 2}), frozenset(), frozenset({3}), frozenset({0})]
    found = real_accuracy(np.array([0, 3, 2, 9, -1]), [3, 2, 0, 1, 2], labels)
    assert found == (1.0, 3, 1)
    found = real_accuracy(np.array([7, 3]), [0, 2], labels)
    assert str(found) == "ReaL accuracy 50.00% over 2 images (0 without labels skipped)"
    assert np.isnan(real_accuracy(np.array([7]), [1], labels).accuracy)


def test_images_go_by_their_names():
    names = ["/data/n01440764/ILSVRC2012_val_00000293.JPEG", "ILSVRC2012_val_00000001.jpg"]
    assert validation_numbers(names) == [292, 0]
    for wrong in ("a.jpg", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"):
        with pytest.raises(UserError, match=rf"^{wrong} is not an image of ImageNet's validation set by its name"):
            validation_numbers([wrong])


def test_reading_real_json(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[1, 2], [], *[[0]] * (IMAGES - 2)]))
    assert read_real_labels(path)[:3] == [{1, 2}, set(), {0}]


@pytest.mark.parametrize("content", ["{", "{}", "[[1]]", json.dumps([[1000]] * IMAGES), json.dumps([["1"]] * IMAGES)])
def test_what_is_no_real_json(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"real.json (must be ImageNet-ReaL's real.json: a list of 50,000|is not JSON)"):
        read_real_labels(path)
