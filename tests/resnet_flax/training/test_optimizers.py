"""Optimisers and schedules against torch's and optax's own."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from resnet_flax.errors import UserError
from resnet_flax.training.config import OptimizerConfig, ScheduleConfig
from resnet_flax.training.optimizers import OPTIMIZERS, decay_mask, make_optimizer, make_schedule
from resnet_flax.training.recipes import RECIPES
from resnet_flax.training.state import Network, model_arrays
from tests.numerics import assert_rounded, gamma
from tests.resnet_flax.training.tiny import Tiny, randomised

torch = pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def network():
    return Network(nnx.eval_shape(lambda: Tiny(param_dtype=jnp.float64, rngs=nnx.Rngs(0))))


def arrays_of(network):
    model = Tiny(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    arrays = randomised(network, network.arrays(model), np.float64)
    return {name: jnp.asarray(arrays[name]) for name in network.parameters}


def gradients_of(params, step):
    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.normal(size=value.shape)) for name, value in sorted(params.items())}


def run(optimizer, params, steps=5, **extra):
    state = optimizer.init(params)
    update = jax.jit(lambda grads, state, params, step: optimizer.update(grads, state, params, step=step))
    for step in range(steps):
        updates, state = update(gradients_of(params, step), state, params, step)
        params = optax.apply_updates(params, updates)
    return params, state


class MuonAndAdamW:
    """`torch.optim.Muon` on each convolution's weight as a matrix, AdamW on the rest, as PyTorch's users combine them.

    The gradients arrive in Flax's layout (h, w, I, O).
    """

    def __init__(self, groups, rate, decay):
        self.param_groups, self.optimizers, self.kernels = groups, [], {}
        for group in groups:
            (parameter,) = group["params"]
            if parameter.ndim == 4:
                matrix = torch.nn.Parameter(parameter.detach().reshape(-1, parameter.shape[3]).T.clone())
                self.kernels[parameter] = matrix
                options = {"momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
                optimizer = torch.optim.Muon([group | {"params": [matrix]}], rate, weight_decay=decay, **options)
            else:
                optimizer = torch.optim.AdamW([group], rate, weight_decay=decay)
            self.optimizers.append(optimizer)

    def step(self):
        for parameter, matrix in self.kernels.items():
            matrix.grad = parameter.grad.reshape(-1, parameter.shape[3]).T
        for optimizer, group in zip(self.optimizers, self.param_groups, strict=True):
            optimizer.param_groups[0]["lr"] = group["lr"]
            optimizer.step()
        for parameter, matrix in self.kernels.items():
            parameter.data = matrix.detach().T.reshape(parameter.shape)


def lion(groups, rate, decay):
    """timm's, which is the authors' in PyTorch; PyTorch has none."""
    return pytest.importorskip("timm.optim").Lion(groups, rate, betas=(0.9, 0.999), weight_decay=decay)


def adan(groups, rate, decay):
    """timm's, which is the authors' (sail-sg/Adan); with decay as AdamW's, which they call no_prox."""
    return pytest.importorskip("timm.optim").Adan(groups, rate, eps=1e-8, weight_decay=decay, no_prox=True)


def schedule_free(kind, **options):
    """The authors' own."""

    def create(groups, rate, decay):
        optimizer = getattr(pytest.importorskip("schedulefree"), kind)(groups, rate, weight_decay=decay, **options)
        optimizer.train()
        return optimizer

    return create


TORCH = {
    "sgd": lambda p, lr, wd: torch.optim.SGD(p, lr, weight_decay=wd),
    "momentum": lambda p, lr, wd: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=wd),
    "nesterov": lambda p, lr, wd: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=wd),
    "adam": lambda p, lr, wd: torch.optim.Adam(p, lr, weight_decay=wd),
    "adamw": lambda p, lr, wd: torch.optim.AdamW(p, lr, weight_decay=wd),
    "muon": MuonAndAdamW,
    "lion": lion,
    "adan": adan,
    "schedule_free_sgd": schedule_free("SGDScheduleFree", momentum=0.9),
    "schedule_free_adamw": schedule_free("AdamWScheduleFree", betas=(0.9, 0.999)),
}


@pytest.mark.parametrize("name", TORCH)
def test_optimizer_is_torchs(network, name, monkeypatch):
    """With decay, a changing learning rate, and a group at a tenth of it; Muon's steps in float64, not bfloat16."""
    if name == "muon":
        if not hasattr(torch.optim, "Muon"):
            pytest.skip("this PyTorch has no Muon")
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    schedule = make_schedule(ScheduleConfig(epochs=3, schedule="cosine"), 0.05, 2)
    config = OptimizerConfig(
        name, weight_decay=0.1, no_decay=("norm",), learning_rate_multipliers=(("conv", 0.1), ("conv2.bias", 0.3))
    )
    params = arrays_of(network)
    ours, state = run(make_optimizer(config, schedule, network), params)

    factors = {n: 0.3 if n == "conv2.bias" else 0.1 if n.startswith("conv") else 1.0 for n in params}
    theirs = {n: torch.nn.Parameter(torch.tensor(np.asarray(value))) for n, value in params.items()}
    groups = [{"params": [p], "lr": 0.0, "weight_decay": 0.0 if n.startswith("bn") else 0.1} for n, p in theirs.items()]
    optimizer = TORCH[name](groups, 0.05, 0.1)
    for step in range(5):
        for group, factor in zip(optimizer.param_groups, factors.values(), strict=True):
            group["lr"] = float(schedule(step)) * factor
        for n, grad in gradients_of(params, step).items():
            theirs[n].grad = torch.tensor(np.asarray(grad))
        optimizer.step()
    # Each of Muon's five steps multiplies small singular values, and the rounding of sums over 54 values, by 3.4445.
    orthogonal = 3.4445**5 * gamma(54, np.float64) if name == "muon" else 0.0
    # A schedule-free average is divided by the share that it has, 0.9, and multiplied by it again.
    noise = 5e-14 if name.startswith("schedule_free") else 1e-14
    for n in params:
        np.testing.assert_allclose(ours[n], theirs[n].detach().numpy(), rtol=1e-12, atol=noise + orthogonal, err_msg=n)
    if name.startswith("schedule_free"):
        optimizer.eval()
        ours = model_arrays({"params": ours, "optimizer": state, "frozen": {}, "statistics": {}})
        for n in params:
            np.testing.assert_allclose(ours[n], theirs[n].detach().numpy(), rtol=1e-12, atol=noise, err_msg=n)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layerwise_optimizer_is_optaxs(network, name):
    params = arrays_of(network)
    config = OptimizerConfig(name, weight_decay=0.1, no_decay=("norm", "bias"), epsilon=1e-6)
    mask = {n: n.endswith("kernel") for n in params}
    ours, _ = run(make_optimizer(config, optax.constant_schedule(0.05), network), params)
    if name == "lars":
        reference = optax.lars(0.05, 0.1, weight_decay_mask=mask, trust_ratio_mask=mask)
    else:
        # optax.lamb scales norms and biases by their trust ratio too; LAMB as published and as in timm does not.
        reference = optax.chain(
            optax.scale_by_adam(eps=1e-6),
            optax.add_decayed_weights(0.1, mask),
            optax.masked(optax.scale_by_trust_ratio(), mask),
            optax.scale_by_learning_rate(0.05),
        )
    theirs, _ = run(optax.with_extra_args_support(reference), params)
    for n in params:
        np.testing.assert_allclose(ours[n], theirs[n], rtol=1e-12, err_msg=n)


def test_every_choice_is_in_the_table_and_an_unknown_one_is_refused(network):
    choices = typing.get_args(typing.get_type_hints(OptimizerConfig)["optimizer"])
    assert set(choices) == set(OPTIMIZERS)
    with pytest.raises(UserError, match="no optimizer 'adamx'; the optimizers are sgd, momentum, nesterov, adam, "):
        make_optimizer(OptimizerConfig("adamx"), optax.constant_schedule(0.1), network)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "schedule_free_sgd", "momentum": 0.0}, "needs --momentum above 0 and below 1, .*; got 0.0"),
        ({"optimizer": "schedule_free_adamw", "betas": (0.0, 0.9)}, "needs --betas above 0 and below 1, .*; got 0.0"),
        ({"optimizer": "schedule_free_adamw", "ema_decay": 0.9}, "already; remove --ema-decay"),
    ],
)
def test_what_a_schedule_free_optimizer_cannot_have(network, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_optimizer(OptimizerConfig(**settings), optax.constant_schedule(0.1), network)


def test_a_skipped_update_leaves_the_schedule_free_average_in_step(network):
    """Its weights are the squares of the rates of the steps that are taken: here of steps 0 and 2."""
    rates = jnp.asarray([0.3, 9.0, 0.1])
    params = arrays_of(network)
    free = make_optimizer(OptimizerConfig("schedule_free_sgd"), lambda step: rates[step], network)
    state = free.init(params)
    for step in (0, 2):
        _, state = free.update(gradients_of(params, step), state, params, step=step)
    (node,) = [node for node in state if isinstance(node, optax.contrib.ScheduleFreeState)]
    assert float(node.weight_sum) == pytest.approx(2 * 0.3**2)


def test_clipping(network):
    params = arrays_of(network)
    config = OptimizerConfig("sgd", clip_norm=0.5)
    ours, _ = run(make_optimizer(config, optax.constant_schedule(1.0), network), params, steps=1)
    moved = np.sqrt(sum(float(jnp.sum((ours[n] - params[n]) ** 2)) for n in params))
    assert moved == pytest.approx(0.5)


def test_decay_mask(network):
    everything = decay_mask(network, ())
    assert all(everything.values())
    assert set(everything) == set(network.parameters)
    without = decay_mask(network, ("norm", "bias"))
    assert {n for n, decays in without.items() if decays} == {"conv1.kernel", "conv2.kernel", "fc.kernel"}
    assert {n for n, decays in decay_mask(network, ("norm",)).items() if not decays} == {
        "bn1.scale",
        "bn1.bias",
        "bn2.scale",
        "bn2.bias",
    }


def test_unknown_group_names_the_nearest(network):
    config = OptimizerConfig("sgd", learning_rate_multipliers=(("conv3", 0.1),))
    with pytest.raises(UserError, match=r"'conv3' matches no parameter.*conv"):
        make_optimizer(config, optax.constant_schedule(0.1), network)


def torch_rates(config, rate, epochs):
    """Epoch by epoch, as torchvision's references build their scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
    rest = config.epochs - config.warmup_epochs
    schedulers = torch.optim.lr_scheduler
    main = {
        "step": lambda: schedulers.StepLR(optimizer, config.step_epochs, config.step_factor),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, rest, eta_min=config.end_factor * rate),
        "poly": lambda: schedulers.PolynomialLR(optimizer, rest, config.poly_power),
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0, 0),
    }[config.schedule]()
    if config.warmup_epochs:
        rise = schedulers.LinearLR(optimizer, config.warmup_start, total_iters=config.warmup_epochs)
        main = schedulers.SequentialLR(optimizer, [rise, main], [config.warmup_epochs])
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        main.step()
    return rates


@pytest.mark.parametrize("kind", ["constant", "step", "cosine", "poly", "linear"])
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_schedule_by_epoch_is_torchs(kind, warmup):
    power = 1.0 if kind == "linear" else 2.0
    config = ScheduleConfig(
        epochs=12,
        schedule="poly" if kind == "linear" else kind,
        schedule_unit="epoch",
        warmup_epochs=warmup,
        warmup_start=0.01,
        step_epochs=4,
        poly_power=power,
    )
    schedule = make_schedule(config, 0.4, 7)
    ours = [[float(schedule(jnp.int32(7 * epoch + step))) for step in (0, 6)] for epoch in range(12)]
    # Optax rises and falls by (start - end) * (1 - step / steps)^power + end in float32: a handful of roundings of
    # numbers no larger than the largest rate.
    assert_rounded([first for first, _ in ours], torch_rates(config, 0.4, 12), 8, np.full(12, 0.4))
    assert [first for first, _ in ours] == [last for _, last in ours]


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("step_epochs", [30, 41, 47])
def test_steps_fall_on_their_epoch_when_compiled(unit, step_epochs):
    """1 / 41 is rounded, and 41 times that is less than 1."""
    config = ScheduleConfig(epochs=100, schedule="step", schedule_unit=unit, step_epochs=step_epochs)
    schedule = jax.jit(make_schedule(config, 1.0, 7))
    edges = [round(float(schedule(jnp.int32(7 * step_epochs * n + offset))), 6) for n in (1, 2) for offset in (-1, 0)]
    assert edges == [1.0, 0.1, 0.1, 0.01]


def test_schedule_by_step_reaches_its_ends():
    config = ScheduleConfig(epochs=10, schedule="cosine", warmup_epochs=2, end_factor=0.1)
    schedule = make_schedule(config, 0.4, 5)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(0.2)
    assert float(schedule(10)) == pytest.approx(0.4)
    assert float(schedule(30)) == pytest.approx(0.4 * 0.55)
    assert float(schedule(50)) == pytest.approx(0.04)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_schedule_is_positive_until_its_end(name):
    config = RECIPES[name].config
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, 3)
    rates = np.array([float(schedule(step)) for step in range(0, 3 * config.schedule.epochs, 7)])
    assert (rates[1:] > 0).all()
    assert rates.max() <= config.optimizer.learning_rate * (1 + 1e-9)
