"""The networks against their PyTorch originals: structure, outputs, options."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
import resnet_flax
from parity.conversion.naming import leaves
from resnet_flax.layers import BatchNorm, Conv
from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, ResNet, build_model
from resnet_flax.models.shortcuts import BareConvolution

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from tests.resnet_flax.models.against_torch import check_against_torch
from tests.torch_models import torch_model


@pytest.mark.parametrize("name", ["resnet18", "residual18", "residual18_3x3"])
def test_names_and_shapes_of_a_model_are_the_originals(name):
    model = nnx.eval_shape(lambda: build_model(name, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        original = torch_model(name).state_dict()
    ours = {leaf.torch_name: leaf.torch_shape for leaf in leaves(model)}
    assert ours == {key: tuple(tensor.shape) for key, tensor in original.items()}


# Small sizes here; every architecture at full size under the marker `full`. At 64 pixels each strided layer sees an
# even size, at 33x47 mostly odd ones, which "SAME" padding would treat differently.
@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("resnet18", 64, 64), ("resnet18", 33, 47), ("residual18", 28, 28), ("residual18_3x3", 33, 47)],
)
def test_eval_outputs_equal_torch(name, height, width):
    def build(**dtypes):
        return build_model(name, rngs=nnx.Rngs(0), **dtypes)

    check_against_torch(build, torch_model(name), height, width, ARCHITECTURES[name].in_channels)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 4, "width_per_group": 8},
        {"width_per_group": 128},
        {"replace_stride_with_dilation": (False, True, True)},
    ],
    ids=str,
)
def test_bottleneck_options_equal_torch(options):
    def build(**dtypes):
        return ResNet(Bottleneck, (1, 2, 1, 1), num_classes=7, rngs=nnx.Rngs(0), **options, **dtypes)

    block = torchvision.models.resnet.Bottleneck
    original = torchvision.models.ResNet(block, [1, 2, 1, 1], num_classes=7, **options)
    check_against_torch(build, original, 40, 33, 3)


@pytest.mark.full
@pytest.mark.parametrize("size", [(224, 224), (193, 161)], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eval_outputs_equal_torch_at_full_size(name, size, record_property):
    def build(**dtypes):
        return build_model(name, rngs=nnx.Rngs(0), **dtypes)

    errors = check_against_torch(build, torch_model(name), *size, ARCHITECTURES[name].in_channels)
    record_property("errors", errors)
    print(name, size, {place: tuple(f"{e:.1e}" for e in row) for place, row in errors.items()})


@pytest.mark.parametrize("name", ["residual18", "residual18_3x3"])
def test_residual_networks_have_the_published_shapes(name):
    model = nnx.eval_shape(lambda: build_model(name, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32)
    shapes = nnx.eval_shape(lambda m, x: m.features(x, m.taps) | {"logits": m(x)}, model, images)
    assert {name: y.shape[1:] for name, y in shapes.items()} == {
        "stem": (56, 56, 64),
        "layer1": (56, 56, 64),
        "layer2": (28, 28, 128),
        "layer3": (14, 14, 256),
        "layer4": (7, 7, 512),
        "pool": (512,),
        "logits": (10,),
    }


def tiny(**options) -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 1), **{"num_classes": 5, "rngs": nnx.Rngs(0), **options})


def test_a_created_model_is_in_eval_mode_and_calls_change_nothing():
    model = resnet_flax.create_model("resnet18", num_classes=3, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(model))
    model(jnp.ones((1, 32, 32, 3)))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_no_head_gives_pooled_features():
    images = jnp.asarray(parity.random_inputs((2, 32, 32, 3)))
    model, headless = tiny(), tiny(num_classes=0)
    model.eval(), headless.eval()
    assert headless(images).shape == (2, 512)
    np.testing.assert_array_equal(headless(images), model.features(images)["pool"])
    np.testing.assert_array_equal(model.fc(headless(images)), model(images))


def test_small_image_stem_keeps_the_resolution():
    model = tiny(small_images=True, in_channels=1)
    shapes = nnx.eval_shape(
        lambda m, x: m.features(x, ("stem", "layer4")), model, jax.ShapeDtypeStruct((1, 32, 32, 1), "float32")
    )
    assert shapes["stem"].shape == (1, 32, 32, 64)
    assert shapes["layer4"].shape == (1, 4, 4, 512)


def test_zero_init_residual_makes_each_block_its_shortcut():
    model = tiny(zero_init_residual=True)
    model.eval()
    x = jnp.asarray(parity.random_inputs((1, 8, 8, 64)))
    np.testing.assert_array_equal(model.layer1[0](x), nnx.relu(x))
    assert model.layer4[0].bn1.scale[...].all()


def test_norm_layer_is_used_throughout():
    model = tiny(norm_layer=partial(nnx.GroupNorm, num_groups=8))
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    assert nnx.GroupNorm in kinds
    assert BatchNorm not in kinds


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_compute_dtype_leaves_parameters_and_statistics_in_float32(dtype):
    model = tiny(dtype=dtype)
    logits = model(jnp.asarray(parity.random_inputs((4, 32, 32, 3))))
    assert logits.dtype == dtype
    assert {v.dtype for v in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


def test_unknown_names_get_the_nearest():
    with pytest.raises(resnet_flax.UserError, match="did you mean resnet50"):
        build_model("resnet5O", rngs=nnx.Rngs(0))
    with pytest.raises(resnet_flax.UserError, match="no initialization named 'xavier'; there are kaiming_normal"):
        build_model("residual18", initialization="xavier", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no tap named layer5; the taps are stem, layer1"):
        tiny().features(jnp.ones((1, 32, 32, 3)), ("layer5",))


def test_basic_block_has_no_groups():
    with pytest.raises(
        ValueError, match="takes groups=1 and width_per_group=64 only and has no 1x1 convolution, not groups=2"
    ):
        tiny(groups=2)


def test_initial_parameters_are_distributed_as_pytorch_draws_them():
    """Standard deviations within 5 standard errors of the rules', and the extremes that tell distributions apart."""
    model = build_model("resnet18", rngs=nnx.Rngs(1))
    kernel = np.asarray(model.layer3[1].conv1.kernel[...])  # 3x3, 256 -> 256: Kaiming normal, fan-out
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=5 / np.sqrt(2 * kernel.size))
    assert abs(kernel).max() > 4 * kernel.std()  # a normal distribution that was not cut off at two
    bound = 1 / np.sqrt(512)
    for values in (model.fc.kernel[...], model.fc.bias[...]):
        assert bound * 0.98 < abs(values).max() <= bound
    plain = build_model("residual18", rngs=nnx.Rngs(1)).layer3[1].conv1
    bound = 1 / np.sqrt(9 * 256)
    for values in (plain.kernel[...], plain.bias[...]):
        assert bound * 0.98 < abs(values).max() <= bound
    xavier = build_model("residual18", initialization="xavier_uniform", rngs=nnx.Rngs(1))
    assert abs(xavier.layer3[1].conv1.kernel[...]).max() == pytest.approx(np.sqrt(6 / (9 * 512)), rel=0.01)
    assert abs(xavier.fc.kernel[...]).max() == pytest.approx(np.sqrt(6 / 522), rel=0.01)
    alias = build_model("residual18_xavier", rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(alias.fc.kernel[...], xavier.fc.kernel[...])


def test_models_are_ordinary_nnx():
    model = tiny(small_images=True)
    images = jnp.asarray(parity.random_inputs((2, 8, 8, 3)))
    grads = nnx.jit(nnx.grad(lambda m: jnp.square(m(images)).sum()))(model)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    model.eval()
    graph, state = nnx.split(model)
    _, tangent = jax.jit(lambda x: jax.jvp(nnx.merge(graph, state), (x,), (x,)))(images)
    assert jnp.isfinite(tangent).all()


def test_the_layers_can_be_exchanged():
    model = tiny(conv_layer=partial(Conv, use_bias=True))
    assert model.conv1.bias is not None


def test_the_shortcut_can_be_exchanged():
    model = tiny(shortcut=BareConvolution(3))
    assert model.layer1[0].downsample is None
    assert isinstance(model.layer2[0].downsample, Conv)
    assert model.layer2[0].downsample.kernel_size == (3, 3)


def test_the_activation_is_used_throughout():
    """With the identity for an activation and norms that change nothing, a network without pooling is linear."""
    model = tiny(activation=lambda x: x, small_images=True)
    model.eval()
    x, y = jnp.asarray(parity.random_inputs((2, 8, 8, 3)))[:, None]
    np.testing.assert_allclose(model(x + y) + model(0 * x), model(x) + model(y), rtol=1e-3, atol=1e-3)
    again = copy.deepcopy(tiny(small_images=True))
    assert nnx.graphdef(again) == nnx.graphdef(tiny(small_images=True))  # else it would be compiled again
