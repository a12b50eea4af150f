"""Every architecture against its PyTorch original, and every kind of option on small networks."""

import copy
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
from parity import to_flax, to_torch
from parity.conversion.naming import leaves
from resnet_flax.errors import UserError
from resnet_flax.layers import GroupNorm
from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, ResNet, build_model, get_architecture
from resnet_flax.models.cost import multiply_accumulates
from resnet_flax.models.options import ModelOptions
from resnet_flax.models.shortcuts import zero_padded
from resnet_flax.weights.entries import entries
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.published import timm_tags

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")
timm = pytest.importorskip("timm", reason="compares with PyTorch")

from timm.models import resnet as theirs

from resnet_flax.models.originals import CifarResNet, with_options
from tests.parity.conversion.test_convert import assert_same_bytes
from tests.resnet_flax.models.against_torch import check_against_torch
from tests.torch_models import torch_model

PRUNED = {"ecaresnet50d_pruned", "ecaresnet101d_pruned"}


def test_every_architecture_of_timm_is_here_but_the_pruned():
    names = set(timm.list_models(module="resnet"))
    assert names - ARCHITECTURES.keys() == PRUNED
    for name in PRUNED:
        with pytest.raises(UserError, match=f"no architecture named '{name}'"):
            get_architecture(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_shapes_and_number_of_parameters_are_the_originals_and_tell_which_it_is(name):
    row = ARCHITECTURES[name]
    with torch.device("meta"):
        original = torch_model(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in original.state_dict().items()}
    assert list(entries(name).items()) == list(shapes.items())
    assert sum(parameter.numel() for parameter in original.parameters()) == row.parameters

    identity = identify(shapes)
    assert identity == Identity(
        identity.architecture, row.num_classes, row.in_channels, small_images=row.options.get("stem_type") == "small"
    )
    same = (identity.architecture, *identity.also)
    assert name in same
    assert same == tuple(other for other in ARCHITECTURES if other in same)  # the first in the table is the plain one
    assert all(list(entries(other).items()) == list(shapes.items()) for other in same)


@pytest.mark.parametrize("name", ["resnet50", "resnet50d", "seresnet50", "resnet50_gn", "cifar_resnet20_projection"])
def test_another_head_and_input_change_no_identity(name):
    changed = {key: shape for key, shape in entries(name).items() if not key.startswith("fc")}
    first = next(iter(changed))
    changed[first] = (changed[first][0], 5, *changed[first][2:])
    identity = identify(changed)
    assert (identity.architecture, identity.num_classes, identity.in_channels) == (name, 0, 5)
    if name.startswith("resnet50") and first == "conv1.weight":
        changed[first] = (64, 4, 3, 3)
        assert identify(changed) == Identity(name, 0, 4, small_images=True)


def test_an_abstract_network_is_the_real_one_without_values():
    abstract = Identity("resnet10t", 7, 1, small_images=False).build_abstract(stochastic_depth=0.5)
    real = nnx.eval_shape(
        lambda: build_model("resnet10t", num_classes=7, in_channels=1, stochastic_depth=0.5, rngs=nnx.Rngs(0))
    )
    assert nnx.state(abstract, nnx.Param, nnx.BatchStat) == nnx.state(real, nnx.Param, nnx.BatchStat)
    assert str(nnx.graphdef(abstract)) == str(nnx.graphdef(real))


def test_networks_of_the_same_names_and_shapes_are_named():
    assert identify(entries("resnetblur50")).architecture == "resnet50"
    assert identify(entries("resnet50")).also == ("resnetblur50", "resnetaa50")
    assert identify(entries("resnet50c")).also == ()


def test_a_pruned_network_is_refused_by_name():
    with torch.device("meta"):
        shapes = {
            key: tuple(tensor.shape) for key, tensor in timm.create_model("ecaresnet50d_pruned").state_dict().items()
        }
    with pytest.raises(UserError, match=r"nearest is ecaresnet50d, but \S+ is \(\d+.*\) and not"):
        identify(shapes)


def timm_arguments(options):
    """Options of `ResNet` as timm's ResNet takes them."""
    renamed = {"groups": "cardinality", "width_per_group": "base_width", "activation": "act_layer"}
    values = {renamed.get(name, name): value for name, value in options.items()}
    layers = {
        "aa_layer": {"avg": torch.nn.AvgPool2d, "blur": timm.layers.BlurPool2d},
        "act_layer": {nnx.silu: torch.nn.SiLU},
        "norm_layer": {GroupNorm: "groupnorm"},
    }
    for name, table in layers.items():
        if name in values:
            values[name] = table[values[name]]
    if attention := values.pop("attn_layer", None):
        ratio = values.pop("rd_ratio", 1 / 16)
        kind = partial(timm.layers.get_attn("se"), rd_ratio=ratio) if attention == "se" else attention
        values["block_args"] = {"attn_layer": kind}
    return values


BLOCKS = {BasicBlock: theirs.BasicBlock, Bottleneck: theirs.Bottleneck}
TWO = {"channels": (64, 16)}
FOUR = {"channels": (64, 16, 8, 8)}
GROUPS = {"groups": 4, "width_per_group": 16}
DEEP = {"stem_type": "deep", "stem_width": 8}

# Block, options of both, size. A network with an average pool instead of a stride takes even sizes only.
KINDS = {
    "deep stem": (BasicBlock, TWO | DEEP, (23, 30)),
    "tiered stem": (BasicBlock, TWO | DEEP | {"stem_type": "deep_tiered"}, (22, 33)),
    "pooled shortcut": (Bottleneck, TWO | {"avg_down": True}, (33, 42)),
    "SE": (BasicBlock, TWO | {"attn_layer": "se"}, (33, 24)),
    "SE of ResNet-RS": (Bottleneck, TWO | {"attn_layer": "se", "rd_ratio": 0.25}, (33, 24)),
    "ECA": (Bottleneck, TWO | {"attn_layer": "eca"}, (33, 24)),
    "average pool for a stride": (BasicBlock, TWO | {"aa_layer": "avg"}, (32, 24)),
    "blur": (Bottleneck, TWO | {"aa_layer": "blur"}, (33, 42)),
    "blur, dilated": (BasicBlock, FOUR | {"aa_layer": "blur", "output_stride": 16}, (64, 48)),
    "stem pool of ResNet-RS": (BasicBlock, TWO | DEEP | {"replace_stem_pool": True}, (33, 42)),
    "the same with a blur": (BasicBlock, TWO | DEEP | {"replace_stem_pool": True, "aa_layer": "blur"}, (33, 42)),
    "GroupNorm": (BasicBlock, {"channels": (64, 32), "norm_layer": GroupNorm}, (33, 24)),
    "output stride 8": (Bottleneck, FOUR | {"output_stride": 8}, (49, 64)),
    "output stride 16, pooled": (BasicBlock, FOUR | {"output_stride": 16, "avg_down": True}, (49, 64)),
    "SENet": (Bottleneck, TWO | GROUPS | {"down_kernel_size": 3, "block_reduce_first": 2}, (33, 24)),
    "SiLU": (BasicBlock, TWO | DEEP | {"activation": nnx.silu}, (24, 33)),
    "both global pools": (BasicBlock, TWO | {"global_pool": "catavgmax"}, (33, 24)),
    "their mean": (BasicBlock, TWO | {"global_pool": "avgmax"}, (33, 24)),
}  # fmt: skip


def small_pair(block, options):
    depth = (1,) * len(options["channels"])

    def build(**dtypes):
        return ResNet(block, depth, num_classes=5, rngs=nnx.Rngs(0), **options, **dtypes)

    original = theirs.ResNet(BLOCKS[block], depth, num_classes=5, **timm_arguments(options))
    for number in range(len(depth), 4):  # timm's always runs four stages
        original.add_module(f"layer{number + 1}", torch.nn.Identity())
    return build, original


@pytest.mark.parametrize("kind", KINDS)
def test_eval_outputs_equal_timms(kind):
    block, options, size = KINDS[kind]
    build, original = small_pair(block, options)
    check_against_torch(build, original, *size, 3)
    state_dict = original.state_dict()
    assert_same_bytes(to_torch(to_flax(state_dict, nnx.eval_shape(build))), state_dict)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"last_stride": 1}, (33, 42)),
        ({"stride_in_first_1x1": True}, (33, 42)),
        ({"max_pool_ceil": True}, (33, 42)),
        ({"max_pool_ceil": True}, (32, 27)),
        ({"norm_epsilon": 0.0}, (24, 33)),
        ({"norm_epsilon": 1e-2}, (24, 33)),
    ],
    ids=str,
)
def test_options_that_weights_do_not_show_equal_the_changed_original(options, size):
    build, original = small_pair(Bottleneck, TWO)
    plain = copy.deepcopy(original)
    with_options(original, ModelOptions(**options))
    check_against_torch(partial(build, **options), original, *size, 3)
    plain.load_state_dict(original.state_dict())
    images = torch.randn(1, 3, *size, dtype=torch.float64)  # in which nothing but the option makes a difference
    logits, changed = (network.double().eval()(images) for network in (plain, original))
    assert not torch.allclose(logits, changed, rtol=1e-9, atol=0)


@pytest.mark.parametrize("projects", [False, True])
def test_networks_for_cifar(projects):
    def build(**dtypes):
        shortcut = {} if projects else {"shortcut": zero_padded}
        options = {"stem_type": "small", "channels": (16, 32, 64), **shortcut, **dtypes}
        return ResNet(BasicBlock, (1, 1, 1), num_classes=10, rngs=nnx.Rngs(0), **options)

    check_against_torch(build, CifarResNet((1, 1, 1), projects=projects), 15, 18, 3)


@pytest.mark.parametrize(
    "options",
    [
        TWO | {"attn_layer": "se", "aa_layer": "blur", "avg_down": True},
        {"channels": (64, 32), "attn_layer": "eca", "norm_layer": GroupNorm, "activation": nnx.silu},
    ],
    ids=["SE and blur", "ECA, GroupNorm and SiLU"],
)
def test_gradients_in_train_mode_equal_timms(options):
    build, original = small_pair(BasicBlock, options)
    ours = nnx.eval_shape(build)
    parity.randomize(ours, original)
    images = parity.random_inputs((3, 33, 42, 3))
    checks = ("forward", "activations", "gradients", "batch_stats")
    with jax.numpy_dtype_promotion("standard"):  # a side in float64 promotes by itself
        report = parity.check(ours, original, images, np.arange(3), checks=checks)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride must be one of"),
        ({"output_stride": 8, "last_stride": 1}, "the last stage is dilated"),
        ({"stride_in_first_1x1": True}, "has no 1x1 convolution"),
        ({"aa_layer": "max"}, "aa_layer must be one of"),
        ({"stem_type": "shallow"}, "stem_type must be"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: build_model("resnet10t", rngs=nnx.Rngs(0), **options))


def test_an_odd_size_that_timm_refuses_is_one_sentence():
    model = nnx.eval_shape(lambda: ResNet(BasicBlock, (1, 1), channels=(8, 8), aa_layer="avg", rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="a block's branch gives 2x4 and its shortcut 3x4"):
        nnx.eval_shape(lambda m, x: m(x), model, jnp.ones((1, 20, 32, 3)))


def test_a_model_of_each_kind_counts_as_many_parameters():
    for name in ("resnet14t", "test_resnet"):
        model = nnx.eval_shape(lambda name=name: build_model(name, rngs=nnx.Rngs(0)))
        sizes = (math.prod(leaf.variable.shape) for leaf in leaves(model) if isinstance(leaf.variable, nnx.Param))
        assert sum(sizes) == ARCHITECTURES[name].parameters


def test_multiply_accumulates_are_the_published_ones():
    for name in ("resnet18", "resnet50", "resnext50_32x4d"):
        published = list(torchvision.models.get_model_weights(name))[-1].meta["_ops"]
        assert multiply_accumulates(name, 224) / 1e9 == pytest.approx(published, abs=5e-4)
    for name in ("resnet10t", "resnet50_gn", "cifar_resnet20", "residual18_3x3", "test_resnet"):
        assert multiply_accumulates(name) / 1e9 == pytest.approx(ARCHITECTURES[name].gmacs, abs=5e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_multiply_accumulates_of_every_row(name):
    assert multiply_accumulates(name) / 1e9 == pytest.approx(ARCHITECTURES[name].gmacs, abs=5e-4)


def test_tags_are_timms():
    tags = {name: tuple(tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")) for name in ARCHITECTURES}
    assert timm_tags() == {name: found for name, found in tags.items() if found}
