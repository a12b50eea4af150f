"""The device's part of preprocessing, against torchvision's tensor transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
pytest.importorskip("torchvision", reason="compares with PyTorch")
from torchvision.transforms import v2

from resnet_flax.data import on_device
from tests.numerics import assert_normalized, assert_rounded

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, 9, 14, 3)).astype(np.float32)
TARGETS = RNG.dirichlet(np.ones(5), 6).astype(np.float32)

mixup_cutmix = jax.jit(on_device.mixup_cutmix, static_argnames=("mixup_alpha", "cutmix_alpha"))
random_erasing = jax.jit(on_device.random_erasing)


def nchw(images):
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def assert_blended(blended, values, weight):
    """The exact blend with the previous sample but for five roundings: of a box's share, of one less it (the weight),
    of one less the weight, of a product and of the sum. The first three are of numbers near 1 for the smallest weight.
    """
    previous = np.roll(values, 1, axis=0)
    exact = values.astype(np.float64) * weight + previous.astype(np.float64) * (1 - weight)
    assert_rounded(blended, exact, 5, np.abs(values) + np.abs(previous))


def test_normalize_is_torchvisions():
    images = RNG.integers(0, 256, (2, 5, 7, 3), np.uint8)
    expected = v2.functional.normalize(
        nchw(images).float() / 255, list(on_device.IMAGENET_MEAN), list(on_device.IMAGENET_STD)
    )
    ours = jax.jit(on_device.normalize)(images)
    assert_normalized(ours, images, on_device.IMAGENET_MEAN, on_device.IMAGENET_STD)
    assert_normalized(expected.permute(0, 2, 3, 1), images, on_device.IMAGENET_MEAN, on_device.IMAGENET_STD)
    grey = on_device.normalize(images[..., :1], (0.5,), (0.25,), jnp.bfloat16)
    assert grey.dtype == jnp.bfloat16
    assert_normalized(grey, images[..., :1], (0.5,), (0.25,), jnp.bfloat16)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mixup_is_torchvisions(weight):
    theirs = v2.MixUp(num_classes=5)
    labels = torch.from_numpy(TARGETS.copy())
    parameters = {"lam": weight, "labels": labels, "batch_size": 6}
    images, targets = jax.jit(on_device.mixup)(IMAGES, TARGETS, weight)
    expected = theirs.transform(nchw(IMAGES), parameters).permute(0, 2, 3, 1)
    for blended, values in ((images, IMAGES), (expected, IMAGES), (targets, TARGETS),
                            (theirs.transform(labels, parameters), TARGETS)):  # fmt: skip
        assert_blended(blended, values, weight)


@pytest.mark.parametrize(
    ("weight", "center"), [(0.5, (4, 7)), (0.9, (0, 13)), (0.02, (8, 0)), (1.0, (3, 3)), (0.0, (4, 6))]
)
def test_cutmix_is_torchvisions(weight, center, monkeypatch):
    theirs = v2.CutMix(num_classes=5)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor(weight))
    draws = iter([center[1], center[0]])  # torchvision draws the column first
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor([next(draws)]))
    labels = torch.from_numpy(TARGETS.copy())
    parameters = {**theirs.make_params([nchw(IMAGES)]), "labels": labels, "batch_size": 6}
    images, targets = jax.jit(on_device.cutmix)(IMAGES, TARGETS, weight, center)
    expected = theirs.transform(nchw(IMAGES), parameters).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(np.asarray(images), expected.numpy())
    for blended in (targets, theirs.transform(labels, parameters)):
        assert_blended(blended, TARGETS, parameters["lam_adjusted"])


def test_mixup_or_cutmix_by_a_fair_coin():
    """Sample i is filled with the value i, so mixing shows: mixup gives new values, cutmix only old ones."""
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 16, 16, 1))
    targets = jnp.eye(4)
    draw = jax.jit(
        jax.vmap(lambda key: on_device.mixup_cutmix(key, images, targets, mixup_alpha=0.2, cutmix_alpha=1.0))
    )
    mixed, blended = map(np.asarray, draw(jax.random.split(jax.random.key(0), 400)))
    assert_rounded(blended.astype(np.float64).sum(-1), 1, 4)
    # The targets give the share of each image's pixels, whichever way they were mixed; both are rounded four times.
    shares = blended.astype(np.float64) @ np.arange(4)
    assert_rounded(mixed.astype(np.float64).mean((2, 3, 4)), shares, 8, shares)
    cut = (mixed == np.round(mixed)).all((1, 2, 3, 4)) & (blended[:, 0, 0] < 1)
    assert 140 < cut.sum() < 260
    own = blended[:, 0, 0]
    theirs = torch.distributions.Beta(0.2, 0.2).sample((4000,)).numpy()
    assert abs((own[~cut] > 0.5).mean() - (theirs > 0.5).mean()) < 0.15
    assert abs(((own[~cut] > 0.9) | (own[~cut] < 0.1)).mean() - ((theirs > 0.9) | (theirs < 0.1)).mean()) < 0.15


def test_each_alpha_alone_and_neither():
    key, images = jax.random.key(1), jnp.asarray(IMAGES)
    unchanged = mixup_cutmix(key, images, TARGETS)
    np.testing.assert_array_equal(unchanged[0], IMAGES)
    cut, _ = mixup_cutmix(key, images, TARGETS, cutmix_alpha=1.0)
    assert np.isin(cut, IMAGES).all()
    mixed, targets = mixup_cutmix(key, images, TARGETS, mixup_alpha=1.0)
    assert not np.isin(mixed, IMAGES).any()
    assert targets.shape == TARGETS.shape


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40)])
def test_erased_rectangles_are_distributed_as_torchvisions(height, width):
    count, scale, ratio = 3000, (0.02, 0.33), (0.3, 3.3)
    keys = jax.random.split(jax.random.key(2), count)
    ours = np.asarray(jax.jit(jax.vmap(lambda key: on_device.erasing_box(key, height, width, scale, ratio)))(keys))
    torch.manual_seed(2)
    eraser, image = v2.RandomErasing(p=1.0, scale=scale, ratio=ratio), torch.zeros(3, height, width)
    drawn = [eraser.make_params([image]) for _ in range(count)]
    theirs = np.array([(p["i"], p["j"], p["h"], p["w"]) for p in drawn])
    for column in range(4):
        values = np.union1d(ours[:, column], theirs[:, column])
        ranks = [np.searchsorted(np.sort(sample[:, column]), values, "right") / count for sample in (ours, theirs)]
        assert np.abs(ranks[0] - ranks[1]).max() < 2.7 * np.sqrt(2 / count)


def test_erasing_fills_a_rectangle_of_the_chosen_samples():
    images = np.ones((400, 12, 15, 2), np.float32)
    erased = np.asarray(random_erasing(jax.random.key(3), images, probability=0.25, value=-7.0))
    hit = (erased == -7).any((1, 2, 3))
    assert 65 < hit.sum() < 135
    for image in erased[hit][:30]:
        rows, columns = np.nonzero(image[..., 0] == -7)
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box == -7).all()
        assert (image == -7).sum() == box.size
    assert np.isin(erased, (1, -7)).all()
    np.testing.assert_array_equal(random_erasing(jax.random.key(3), images, probability=0.0), images)
    too_small = np.ones((3, 1, 1, 3), np.float32)
    np.testing.assert_array_equal(random_erasing(jax.random.key(3), too_small, probability=1.0), too_small)


def test_runs_per_device_under_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = jax.sharding.PartitionSpec("data")

    def step(images, targets):
        images, targets = on_device.mixup_cutmix(
            jax.random.key(0), on_device.normalize(images), targets, mixup_alpha=0.2, cutmix_alpha=1.0
        )
        return on_device.random_erasing(jax.random.key(1), images, probability=0.5), targets

    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)))
    batch = 2 * len(jax.devices())
    images, _ = run(np.zeros((batch, 8, 8, 3), np.uint8), np.eye(batch, dtype=np.float32))
    assert images.shape == (batch, 8, 8, 3)
