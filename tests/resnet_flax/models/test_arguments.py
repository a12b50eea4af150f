"""Arguments that other libraries have, and misspelt ones, get a sentence with ours."""

import pytest
from flax import nnx

from resnet_flax import create_model, load_pretrained
from resnet_flax.errors import UserError
from resnet_flax.models import build_model
from resnet_flax.models.arguments import ELSEWHERE, require_known


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pretrained": True}, 'no pretrained=; here it is weights="DEFAULT"'),
        ({"in_chans": 1}, "no in_chans=; here it is in_channels"),
        ({"drop_path_rate": 0.1}, "here it is stochastic_depth"),
        ({"global_poool": "max"}, r"no global_poool=; did you mean global_pool\?"),
        ({"weight": "DEFAULT"}, "did you mean weights"),
        ({"xyzzy": 1}, "no xyzzy=; there are .*zero_init_residual"),
    ],
)
def test_unknown_options(options, sentence):
    for create in (create_model, lambda name, **given: load_pretrained(name, "DEFAULT", **given)):
        with pytest.raises(UserError, match=sentence):
            create("resnet18", **options)
    with pytest.raises(UserError, match=sentence):
        build_model("resnet18", rngs=nnx.Rngs(0), **options)


def test_ours_are_known():
    require_known(["dtype", "norm_layer", "initialization", "num_classes", "replace_stride_with_dilation"])
    for name in ELSEWHERE:
        with pytest.raises(UserError, match=name):
            require_known([name])


def test_weights_that_are_no_name():
    with pytest.raises(UserError, match='weights= is a name such as "DEFAULT", or a file; got True'):
        create_model("resnet18", weights=True)


def test_the_enums_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    with pytest.raises(UserError, match="belongs to resnet50, not to resnet18"):
        create_model("resnet18", weights=models.ResNet50_Weights.DEFAULT)
