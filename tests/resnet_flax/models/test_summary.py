"""The table of a network agrees with what is known of it."""

import pytest
from flax import nnx

import resnet_flax
from resnet_flax.models import ARCHITECTURES, build_model, list_models
from resnet_flax.models.cost import multiply_accumulates


@pytest.mark.parametrize(
    "name", ["test_resnet", "cifar_resnet20", pytest.param("seresnext26t_32x4d", marks=pytest.mark.full)]
)
def test_parameters_and_costs_are_the_published(name):
    row = ARCHITECTURES[name]
    model = nnx.eval_shape(lambda: build_model(name, rngs=nnx.Rngs(0)))
    table = resnet_flax.summary(model, row.image_size)
    assert table.parameters == row.parameters
    assert table.multiply_accumulates == multiply_accumulates(name)
    lines = str(table).splitlines()
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "GMACs"]
    assert lines[-1].split()[:2] == ["total", f"{row.parameters:,}"]
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines)
    names = [row.name for row in table.rows]
    assert names[-1] == "fc"
    assert names.index("layer1.0") < names.index("layer2.0")


def test_names_by_pattern():
    assert list_models("resnet18*") == ["resnet18", "resnet18d"]
    assert list_models() == list(ARCHITECTURES)
    assert list_models("vgg*") == []
