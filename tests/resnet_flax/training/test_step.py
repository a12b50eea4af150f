"""The training step on one device against torch's arithmetic in float64."""

import copy
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from parity import to_flax, to_torch
from resnet_flax.errors import UserError
from resnet_flax.models import build_model
from resnet_flax.training.config import LossConfig, OptimizerConfig
from resnet_flax.training.evaluation import make_evaluate
from resnet_flax.training.loss import make_loss, make_prepare
from resnet_flax.training.optimizers import make_optimizer
from resnet_flax.training.sharding import check_batch_size
from resnet_flax.training.state import Network, create_state, model_arrays
from resnet_flax.training.step import make_train_step
from tests.numerics import assert_normalized, assert_rounded
from tests.resnet_flax.training.tiny import CLASSES, Tiny, batches, randomised

RATE = 0.1


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def prepare(key, batch):
    return batch["image"], jax.nn.one_hot(batch["label"], CLASSES, dtype=batch["image"].dtype)


def build(freeze=(), *, optimizer=None, ema=False, train_frozen_statistics=False, **options):
    """(network, state, step) of a randomised Tiny."""
    model = Tiny(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    network = Network(model, freeze, train_frozen_statistics=train_frozen_statistics)
    schedule = optax.constant_schedule(RATE)
    optimizer = make_optimizer(optimizer or OptimizerConfig("momentum", weight_decay=0.01), schedule, network)
    arrays = {n: jnp.asarray(v) for n, v in randomised(network, network.arrays(model), np.float64).items()}
    state = create_state(network, arrays, optimizer, seed=0, ema=ema)
    step = make_train_step(network, optimizer, schedule, make_loss(LossConfig()), prepare, **options)
    return network, state, step


def torch_tiny(network, state):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")

    class TorchTiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(6)
            self.conv2 = torch.nn.Conv2d(6, 8, 3, padding=1)
            self.bn2 = torch.nn.BatchNorm2d(8)
            self.fc = torch.nn.Linear(8, CLASSES)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)))
            return self.fc(x.mean((2, 3)))

    model = TorchTiny().double()
    state_dict = to_torch(network.model(model_arrays(state)))
    model.load_state_dict({name: torch.tensor(array) for name, array in state_dict.items()})
    return model


def in_torch(batch, part=slice(None)):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    images = torch.tensor(np.moveaxis(np.asarray(batch["image"][part]), -1, 1))
    return images, torch.tensor(np.asarray(batch["label"][part]).astype(np.int64))


def assert_same(network, state, torch_model, rtol=1e-10):
    ours = to_torch(network.model(model_arrays(state)))
    for name, tensor in torch_model.state_dict().items():
        np.testing.assert_allclose(ours[name], tensor.numpy(), rtol=rtol, atol=1e-13, err_msg=name)


def torch_train(model, given, micro=1, freeze=()):
    """The loop that anyone would write in PyTorch; frozen parameters' norms in eval mode."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    trained = [p for n, p in model.named_parameters() if not n.startswith(tuple(freeze) or "-")]
    optimizer = torch.optim.SGD(trained, RATE, momentum=0.9, weight_decay=0.01)
    model.train()
    for name, module in model.named_children():
        if name in freeze and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    for batch in given:
        optimizer.zero_grad()
        size = len(batch["label"]) // micro
        for start in range(0, len(batch["label"]), size):
            images, labels = in_torch(batch, slice(start, start + size))
            (torch.nn.functional.cross_entropy(model(images), labels) / micro).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_torchs(accumulate):
    """Parameters, statistics, counters after four steps; accumulation updates the statistics once a micro-batch."""
    network, state, step = build(accumulate=accumulate)
    theirs = torch_tiny(network, state)
    given = batches(4, 6)
    for batch in given:
        state, _ = step(state, batch)
    assert_same(network, state, torch_train(theirs, given, micro=accumulate))
    assert int(state["statistics"]["bn1.num_batches_tracked"]) == 4 * accumulate


def test_metrics():
    network, state, step = build()
    batch = batches(1, 6)[0]
    logits = torch_tiny(network, state).train()(in_torch(batch)[0]).detach().numpy()
    _, metrics = step(state, batch)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-12)
    assert float(metrics["accuracy"]) == (logits.argmax(1) == batch["label"]).mean()
    assert float(metrics["learning_rate"]) == pytest.approx(RATE)
    assert bool(metrics["finite"])


FREEZE = ("conv1", "bn1", "conv2")


def test_frozen_parts_stay_and_match_torch():
    network, state, step = build(("conv1|bn1", "conv2"))
    before = jax.tree.map(np.asarray, state)
    theirs = torch_tiny(network, state)
    given = batches(3, 6)
    for batch in given:
        state, _ = step(state, batch)
    assert_same(network, state, torch_train(theirs, given, freeze=FREEZE))
    assert set(before["frozen"]) == {n for n in network.parameters if n.startswith(FREEZE)}
    for name in (n for n in network.statistics if n.startswith("bn1")):
        np.testing.assert_array_equal(state["statistics"][name], before["statistics"][name])
    assert int(state["statistics"]["bn2.num_batches_tracked"]) == 3


def test_frozen_statistics_move_on_request():
    _, state, step = build(("conv1|bn1", "conv2"), train_frozen_statistics=True)
    before = np.asarray(state["statistics"]["bn1.mean"])
    state, _ = step(state, batches(1, 6)[0])
    assert (np.asarray(state["statistics"]["bn1.mean"]) != before).all()


def test_frozen_parameters_cost_neither_gradients_nor_memory():
    network, state, step = build(("(?!fc)",))
    assert set(state["params"]) == {"fc.kernel", "fc.bias"}
    moments = [x for x in jax.tree.leaves(state["optimizer"]) if x.ndim]
    assert sorted(x.shape for x in moments) == sorted(x.shape for x in state["params"].values())

    def products(text):
        return text.count("stablehlo.convolution") + text.count("stablehlo.dot_general")

    batch = batches(1, 6)[0]
    forward = jax.jit(lambda arrays, x: network.model(arrays)(x)).lower(model_arrays(state), batch["image"]).as_text()
    frozen = products(step.lower(state, batch).as_text())
    assert frozen == products(forward) + 1  # the head's kernel; its input's gradient is not asked for
    _, state, step = build()
    assert products(step.lower(state, batch).as_text()) > frozen + 1


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="leaves no parameter"):
        build((".",))
    with pytest.raises(UserError, match=r"'con1' matches no parameter; did you mean conv1"):
        build(("con1",))


def test_moving_average():
    """A copy until the warm-up is over, then every second step; the counters are copied."""
    _, state, step = build(ema=True, ema_decay=0.8, ema_every=2, ema_start=2)
    average = None
    for number, batch in enumerate(batches(6, 6), start=1):
        state, _ = step(state, batch)
        if number <= 2 and number % 2 == 0:
            average = jax.tree.map(np.asarray, state["params"] | state["statistics"])
        elif number % 2 == 0:
            now = jax.tree.map(np.asarray, state["params"] | state["statistics"])
            average = {n: now[n] if n.endswith("tracked") else 0.8 * average[n] + 0.2 * now[n] for n in now}
    found = state["ema"]["params"] | state["ema"]["statistics"]
    for name, value in average.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    assert (np.asarray(found["fc.kernel"]) != np.asarray(state["params"]["fc.kernel"])).all()


def test_nonfinite_update_is_left_out():
    _, state, step = build(ema=True, ema_decay=0.9, skip_nonfinite=True)
    good, bad = batches(2, 6)
    bad = {**bad, "image": np.where(bad["image"] > 2, np.nan, bad["image"])}
    state, metrics = step(state, good)
    assert bool(metrics["finite"])
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, bad)
    assert not bool(metrics["finite"])
    assert int(state.pop("step")) == before.pop("step") + 1
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_a_second_call_does_not_compile(caplog):
    network, state, step = build(ema=True, ema_decay=0.9)
    evaluate = make_evaluate(network, CLASSES, lambda model, images: model(images))

    def compiled(state, batch):
        """The state after a step and an evaluation, and the names of what they compiled."""
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            state, _ = step(state, batch)
            evaluate(model_arrays(state), [{**batch, "mask": np.ones(6, bool)}])
        names = [re.match(r"Compiling (?:jit\()?(\w+)", record.message) for record in caplog.records]
        return state, {name.group(1) for name in names if name}

    first, second = batches(2, 6)
    state, names = compiled(state, first)
    assert {"step", "add"} <= names
    state, names = compiled(state, second)
    assert not names


def test_state_is_donated():
    _, state, step = build()
    step(state, batches(1, 6)[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state["params"], state["optimizer"])))


@pytest.mark.parametrize("name", ["resnet18", "residual18"])
def test_stochastic_depth(name):
    """Absent at rate 0; otherwise some samples' branches are left out, by the key, in train mode only."""
    sizes = {"num_classes": 3, "in_channels": 1}

    def abstract(rate):
        return nnx.eval_shape(lambda: build_model(name, **sizes, stochastic_depth=rate, rngs=nnx.Rngs(0)))

    assert not nnx.to_flat_state(nnx.state(abstract(0.0), nnx.RngState))
    drops = [m for _, m in nnx.iter_modules(abstract(0.7)) if isinstance(m, nnx.Dropout)]
    np.testing.assert_allclose([drop.rate for drop in drops], 0.7 * np.arange(8) / 7)

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, broadcast_dims=(1, 2, 3), rngs=rngs)
            self.fc = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x):
            return self.drop(x)

    model = Block(nnx.Rngs(0))
    network = Network(model)
    arrays = network.arrays(model)
    ones = jnp.ones((64, 2, 2, 2), jnp.float32)
    first, again, other = (network.model(arrays, key=jax.random.key(k))(ones) for k in (1, 1, 2))
    assert {tuple(np.unique(sample)) for sample in np.asarray(first)} == {(0.0,), (2.0,)}
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    np.testing.assert_array_equal(network.model(arrays)(ones), ones)


def test_losses_are_torchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 5)) * 3, rng.dirichlet(np.ones(5), 7)
    ours = make_loss(LossConfig(label_smoothing=0.1))(jnp.asarray(logits), jnp.asarray(targets))
    smoothed = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    np.testing.assert_allclose(ours, smoothed(torch.tensor(logits), torch.tensor(targets)), rtol=1e-12)

    binary = torch.nn.BCEWithLogitsLoss()
    config = LossConfig(loss="binary_cross_entropy", bce_threshold=0.2)
    ours = make_loss(config)(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(ours, binary(torch.tensor(logits), torch.tensor((targets > 0.2) * 1.0)), rtol=1e-12)
    ours = make_loss(LossConfig(loss="binary_cross_entropy"))(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(ours, binary(torch.tensor(logits), torch.tensor(targets)), rtol=1e-12)


@pytest.mark.unoptimized
def test_prepare_mixes_and_erases():
    """What goes on inside is tested with the data; here that each option reaches the batch and its targets."""
    images = np.random.default_rng(0).integers(1, 255, (8, 6, 6, 1), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8) % 4}
    key = jax.random.key(3)
    plain, targets = make_prepare(LossConfig(), 4, (0.5,), (0.25,))(key, batch)
    assert_normalized(plain, images, (0.5,), (0.25,))
    np.testing.assert_array_equal(targets, np.eye(4)[np.arange(8) % 4])
    erased, targets = make_prepare(LossConfig(random_erasing=1.0), 4, (0.5,), (0.25,))(key, batch)
    assert (np.asarray(erased) == 0).any()
    assert (np.asarray(plain) != 0).all()
    for name in ("mixup", "cutmix"):
        mixed, targets = make_prepare(LossConfig(**{name: 1.0}), 4, (0.5,), (0.25,))(key, batch)
        assert (np.asarray(mixed) != np.asarray(plain)).any()
        assert_rounded(np.asarray(targets, np.float64).sum(1), 1, 4)
        assert ((np.asarray(targets) > 0).sum(1) == 2).any()


@pytest.mark.parametrize(
    ("batch", "devices", "accumulate", "choice"), [(30, 8, 1, "24 or 32"), (4, 8, 1, "8"), (24, 8, 2, "16 or 32")]
)
def test_batch_that_cannot_be_split(batch, devices, accumulate, choice):
    with pytest.raises(UserError, match=f"--batch-size {choice}"):
        check_batch_size(batch, devices, accumulate)
    check_batch_size(devices * accumulate, devices, accumulate)


def test_planted_fault_is_seen():
    """The comparison with torch tells a momentum of 0.9 from one of 0.89."""
    network, state, step = build(optimizer=OptimizerConfig("momentum", momentum=0.89, weight_decay=0.01))
    theirs = copy.deepcopy(torch_tiny(network, state))
    given = batches(2, 6)
    for batch in given:
        state, _ = step(state, batch)
    with pytest.raises(AssertionError):
        assert_same(network, state, torch_train(theirs, given))


def test_round_trip_through_torch_names():
    network, state, _ = build()
    model = network.model(model_arrays(state))
    again = to_flax(to_torch(model), Tiny(param_dtype=jnp.float64, rngs=nnx.Rngs(1)))
    for name, array in network.arrays(again).items():
        np.testing.assert_array_equal(array, model_arrays(state)[name])
