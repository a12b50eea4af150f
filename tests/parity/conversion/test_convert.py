"""state_dict <-> NNX: exact, total, strict; and the leaf rules of every kind of layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import parity
from parity.conversion.convert import copied, to_flax, to_torch
from parity.conversion.naming import find_prefix, leaves, renamed
from parity.errors import ParityError
from resnet_flax.models import ARCHITECTURES, BasicBlock, ResNet, build_model

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torchvision = pytest.importorskip("torchvision", reason="compares with PyTorch")

from tests.numerics import assert_close_to_torch
from tests.torch_models import torch_model


def assert_same_bytes(back, original):
    """Names, dtypes, shapes and bits."""
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        theirs = parity.conversion.convert.as_numpy(tensor)
        assert (back[name].dtype, back[name].shape) == (theirs.dtype, theirs.shape), name
        assert back[name].tobytes() == theirs.tobytes(), name


def abstract(name, **options):
    return nnx.eval_shape(lambda: build_model(name, rngs=nnx.Rngs(0), **options))


SMALL = ("resnet18", "residual18_3x3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.full) for name in ARCHITECTURES]
)
def test_there_and_back_gives_the_same_bytes(name):
    network = torch_model(name)
    parity.randomize(None, network)
    original = network.state_dict()
    back = to_torch(to_flax(original, abstract(name)))
    assert_same_bytes(back, original)
    assert back["bn1.num_batches_tracked"].dtype == np.int64


def tiny_pair(**options):
    """A small BasicBlock ResNet in both frameworks: random weights in PyTorch, abstract in Flax."""
    block = torchvision.models.resnet.BasicBlock
    original = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5)
    parity.randomize(None, original)

    def build():
        return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(0), **options)

    return original, nnx.eval_shape(build)


def test_order_of_a_built_model_is_torchvisions():
    original, _ = tiny_pair()
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(0))
    assert list(to_torch(model)) == list(original.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_file_prefix_and_order_come_back_with_like(dtype):
    original, model = tiny_pair()
    state_dict = {"module." + key: tensor for key, tensor in reversed(original.to(dtype).state_dict().items())}
    back = to_torch(to_flax(state_dict, model), like=state_dict)
    assert_same_bytes(back, state_dict)
    assert list(back) == list(state_dict)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_counters_that_became_floats_with_all_else_come_back_with_like(dtype):
    original, model = tiny_pair()
    original.bn1.num_batches_tracked += 1237
    state_dict = {key: tensor.to(dtype) for key, tensor in original.state_dict().items()}
    assert_same_bytes(to_torch(to_flax(state_dict, model), like=state_dict), state_dict)
    assert model.bn1.num_batches_tracked[...] == int(state_dict["bn1.num_batches_tracked"])
    for value in (0.5, float("inf")):
        state_dict["bn1.num_batches_tracked"] = torch.tensor(value, dtype=dtype)
        with pytest.raises(ParityError, match=r"bn1.num_batches_tracked is .*float.*, not a whole number"):
            to_flax(state_dict, model)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"fc.bias": 3}, "'fc.bias' in the state_dict is a int"),
        ({1: torch.ones(2)}, "1 in the state_dict is a Tensor: names of tensors"),
        ({"fc.bias": torch.ones(5, device="meta")}, "fc.bias in the state_dict is on PyTorch's device meta"),
    ],
)
def test_what_is_no_tensor_with_values_is_named(entry, message):
    original, model = tiny_pair()
    with pytest.raises(ParityError, match=message):
        to_flax(original.state_dict() | entry, model)
    with pytest.raises(ParityError, match=message):
        to_torch(to_flax(original.state_dict(), model), like=original.state_dict() | entry)


def test_file_without_counters_comes_back_without():
    original, model = tiny_pair()
    state_dict = {k: v for k, v in original.state_dict().items() if not k.endswith("num_batches_tracked")}
    to_flax(state_dict, model)
    assert model.bn1.num_batches_tracked[...] == 0
    assert_same_bytes(to_torch(model, like=state_dict), state_dict)


def test_float64_is_kept_or_refused():
    original, model = tiny_pair()
    with pytest.raises(ParityError, match=r"weight is float64 .*param_dtype=float64"):
        to_flax(original.double().state_dict(), model)
    with jax.enable_x64(True):
        original, model = tiny_pair(param_dtype=jnp.float64)
        original = original.double()
        assert_same_bytes(to_torch(to_flax(original.state_dict(), model)), original.state_dict())


def test_whole_numbers_are_no_weights():
    original, model = tiny_pair()
    state_dict = original.state_dict() | {"fc.bias": torch.zeros(5, dtype=torch.int16)}
    with pytest.raises(ParityError, match="fc.bias is int16 in the state_dict and float32 in the model"):
        to_flax(state_dict, model)


def test_values_too_large_for_the_type_of_like_are_refused():
    original, model = tiny_pair()
    state_dict = original.half().state_dict()
    to_flax(state_dict, model)
    model.fc.bias[...] = jnp.full(5, 1e6)
    with pytest.raises(ParityError, match=r"fc.bias has values up to 1e\+06, too large for float16"):
        to_torch(model, like=state_dict)


def test_counter_beyond_32_bits_is_refused():
    original, model = tiny_pair()
    original.bn1.num_batches_tracked += 2**40
    with pytest.raises(ParityError, match="bn1.num_batches_tracked = .* does not fit in int32"):
        to_flax(original.state_dict(), model)


def test_nothing_shares_memory_with_torch():
    original, model = tiny_pair()
    to_flax(original.state_dict(), model)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    exported = to_torch(model)
    with torch.no_grad():
        for tensor in original.state_dict().values():
            tensor.zero_()
    for array in exported.values():
        array[...] = 7
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))


def test_errors_list_every_entry_of_both_sides_and_change_nothing():
    original, _ = tiny_pair()
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(0))
    state_dict = dict(original.state_dict())
    state_dict["layer1.0.convolution1.weight"] = state_dict.pop("layer1.0.conv1.weight")
    del state_dict["layer4.0.bn2.running_var"]
    state_dict["extra"] = torch.zeros(2)
    state_dict["fc.weight"] = torch.zeros(7, 512)
    before = np.array(model.bn1.mean[...])
    with pytest.raises(ParityError) as raised:
        to_flax(state_dict, model)
    message = str(raised.value)
    assert "layer1.0.conv1.weight (64, 64, 3, 3)  (nearest: layer1.0.convolution1.weight)" in message
    assert "layer4.0.bn2.running_var (512,)" in message
    assert "extra (2,)" in message
    assert "fc.weight: (7, 512) in the state_dict, (5, 512) in the model" in message
    np.testing.assert_array_equal(model.bn1.mean[...], before)


def test_one_mismatch_of_any_kind_is_enough():
    original, model = tiny_pair()
    state_dict = original.state_dict()
    without_one = {name: tensor for name, tensor in state_dict.items() if name != "fc.bias"}
    for changed in (without_one, {**state_dict, "extra": torch.zeros(2)}, {**state_dict, "fc.bias": torch.zeros(7)}):
        with pytest.raises(ParityError, match="do not correspond"):
            to_flax(changed, model)
        with pytest.raises(ParityError, match="do not correspond"):
            to_torch(to_flax(state_dict, model), like=changed)


def test_a_prefix_is_what_stands_before_most_names():
    assert find_prefix(["module.a.weight", "module.b.weight", "c"], ["a.weight", "b.weight", "c.weight"]) == "module."
    assert find_prefix(["aux.a.weight", "x", "y"], ["a.weight", "b.weight", "c.weight"]) == ""
    assert find_prefix(["module.a.weight", "a.weight"], ["a.weight"]) == ""


def test_a_counter_missing_among_others_is_an_error():
    original, model = tiny_pair()
    state_dict = original.state_dict()
    del state_dict["bn1.num_batches_tracked"]
    with pytest.raises(ParityError, match="bn1.num_batches_tracked"):
        to_flax(state_dict, model)


def test_flax_model_exported_gives_the_same_logits_in_torchvision():
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(3))
    model.eval()
    block = torchvision.models.resnet.BasicBlock
    original = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5).eval()
    original.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(model).items()}, strict=True)
    images = parity.random_inputs((2, 33, 40, 3))
    assert_close_to_torch({"output": model(jnp.asarray(images))}, original, images)


def test_a_loaded_model_is_in_eval_mode():
    original, model = tiny_pair()
    model.train()
    assert to_flax(original.state_dict(), model).bn1.use_running_average


@pytest.mark.parametrize("shape", [(5,), (3, 0), (3, 70), (65, 3), (70, 120, 3, 3), (130, 1100), (2, 40, 5, 3, 1)])
def test_copied_equals_numpys_copy(shape):
    array = np.random.default_rng(0).normal(size=shape)
    for view in (array, np.transpose(array), np.moveaxis(array, 0, -1)):
        result = copied(view)
        np.testing.assert_array_equal(result, view)
        assert result.flags.c_contiguous
        assert not np.shares_memory(result, array)


class Zoo(nnx.Module):
    """One of each layer that has a rule, inside the containers that NNX offers."""

    def __init__(self, rngs: nnx.Rngs, transpose_kernel: bool = False):
        self.embed = nnx.Embed(11, 4, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 6, (3, 2), (2, 2), padding="VALID", transpose_kernel=transpose_kernel, rngs=rngs)
        self.body = nnx.Sequential(
            nnx.Conv(6, 6, (3,), padding=((1, 1),), rngs=rngs), nnx.relu, nnx.GroupNorm(6, num_groups=2, rngs=rngs)
        )
        self.norms = nnx.List([nnx.LayerNorm(6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)])
        self.head = nnx.Linear(6, 6, rngs=rngs)
        self.temperature = nnx.Param(jnp.ones(()))

    def __call__(self, tokens):
        x = self.up(self.embed(tokens)).mean(1)
        x = self.norms[1](self.norms[0](self.body(x)))
        return self.head(x) * self.temperature[...]


class TorchZoo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 4)
        self.up = torch.nn.ConvTranspose2d(4, 6, (3, 2), 2)
        self.body = torch.nn.Sequential(torch.nn.Conv1d(6, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.GroupNorm(2, 6))
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(6, eps=1e-6), torch.nn.BatchNorm1d(6)])
        self.head = torch.nn.Linear(6, 6)
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        x = self.up(self.embed(tokens).permute(0, 3, 1, 2)).mean(2)
        x = self.norms[0](self.body(x).transpose(1, 2))
        x = self.norms[1](x.transpose(1, 2)).transpose(1, 2)
        return self.head(x) * self.temperature


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_leaf_rules_carry_every_kind_of_layer(transpose_kernel):
    original = TorchZoo().eval()
    parity.randomize(None, original)
    original.body[2].eps = 1e-6  # Flax's default
    tokens = np.random.default_rng(0).integers(0, 11, (2, 3, 5))
    model = to_flax(original.state_dict(), Zoo(nnx.Rngs(0), transpose_kernel))
    assert_close_to_torch({"output": model(jnp.asarray(tokens))}, original, tokens)
    like = original.state_dict()
    assert_same_bytes(to_torch(model, like=like), like)


def test_a_bare_batch_norm_of_nnx_has_no_place_for_the_counter():
    original = torch.nn.BatchNorm1d(6)
    parity.randomize(None, original)
    model = to_flax(original.state_dict(), nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(model.var[...], original.running_var)
    like = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    back = to_torch(model, like=like)
    assert_same_bytes(back, like)
    assert not any(np.shares_memory(back[name], like[name]) for name in like)


def test_names_that_differ_are_mapped():
    model = nnx.eval_shape(lambda: Zoo(nnx.Rngs(0)))
    renamed = {
        key.replace("norms.1", "batch_norm").replace("body", "net.body"): tensor
        for key, tensor in TorchZoo().state_dict().items()
    }
    names = {"norms.1": "batch_norm", "body": "net.body"}
    assert_same_bytes(to_torch(to_flax(renamed, model, names=names), like=renamed, names=names), renamed)


def test_the_longest_name_that_fits_is_mapped():
    assert renamed("a.b.c", {"a": "x", "a.b": "y"}) == renamed("a.b.c", {"a.b": "y", "a": "x"}) == "y.c"
    assert renamed("a.bc", {"a.b": "y"}) == "a.bc"


def test_layer_without_a_rule_is_named():
    class Adapts(nnx.Module):
        def __init__(self):
            self.adapter = nnx.LoRA(4, 2, 4, rngs=nnx.Rngs(0))

    with pytest.raises(ParityError, match=r"adapter is a flax LoRA.*parity\.register_layer"):
        leaves(Adapts())


def test_model_without_parameters_is_refused():
    with pytest.raises(ParityError, match="the List has no parameters"):
        leaves(nnx.List([]))


def test_registered_rule_is_used(monkeypatch):
    monkeypatch.setattr(parity.conversion.rules, "_RULES", dict(parity.conversion.rules._RULES))

    class Scale(nnx.Module):
        def __init__(self):
            self.factor = nnx.Param(jnp.zeros((2, 3)))

    @parity.register_layer(Scale)
    def rules(module):
        return {"factor": parity.LeafRule("gamma", np.transpose, np.transpose)}

    original = {"gamma": np.arange(6, dtype=np.float32).reshape(3, 2)}
    model = to_flax(original, Scale())
    np.testing.assert_array_equal(model.factor[...], original["gamma"].T)
    assert_same_bytes(to_torch(model), original)
