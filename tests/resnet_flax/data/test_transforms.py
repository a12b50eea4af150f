"""Transforms against torchvision: the same pixels from the same parameters, the same distribution of parameters."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
pytest.importorskip("torchvision", reason="compares with PyTorch")
import skimage.data
import sklearn.datasets
from PIL import Image
from torchvision import transforms as tv
from torchvision.models import get_model_weights
from torchvision.transforms import functional as tvf
from torchvision.transforms.autoaugment import _apply_op

from resnet_flax.data import (
    SmallImageTransform,
    TrainingTransform,
    evaluation_transform,
    on_device,
)
from resnet_flax.data.augment import (
    BINS,
    OPERATIONS,
    RAND_RANGES,
    TRIVIAL_RANGES,
    apply_operation,
    draw_rand,
    draw_trivial,
    magnitude_of,
)
from resnet_flax.data.transforms import RESAMPLING, random_resized_crop
from resnet_flax.errors import UserError
from tests.numerics import assert_normalized

BUNDLED = Path(skimage.data.__file__).parent
PHOTOGRAPHS = {path.stem: path for path in sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))}
PHOTOGRAPHS |= {
    name: path
    for name in ("chelsea", "color", "rocket", "coffee", "horse", "camera")
    for path in BUNDLED.glob(f"{name}.*")
}


def photograph(name: str) -> Image.Image:
    """A bundled photograph in RGB; "portrait" and "small" are odd-sized views of one."""
    if name == "portrait":  # 321 x 451
        return photograph("chelsea").crop((0, 0, 300, 451 - 150)).rotate(90, expand=True).resize((321, 451))
    if name == "small":  # smaller than any crop
        return photograph("china").resize((97, 61))
    if name == "narrow":
        return photograph("china").resize((31, 400))
    if name == "pixel":
        return photograph("china").crop((5, 5, 6, 6))
    return Image.open(PHOTOGRAPHS[name]).convert("RGB")


NAMES = [*PHOTOGRAPHS, "portrait", "small", "narrow", "pixel"]


def pixels(tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_presets_are_torchvisions(name):
    image = photograph(name)
    weights = [w for arch in ("resnet50", "resnext101_64x4d") for w in get_model_weights(arch)]
    for weight in weights:
        preset = weight.transforms()
        ours = evaluation_transform(preset.resize_size[0], preset.crop_size[0])(image)
        raw = tvf.center_crop(tvf.resize(image, preset.resize_size), preset.crop_size)
        np.testing.assert_array_equal(ours, np.asarray(raw))
        for normalised in (on_device.normalize(ours, preset.mean, preset.std), pixels(preset(image))):
            assert_normalized(normalised, ours, preset.mean, preset.std)


@pytest.mark.parametrize(("resize", "crop"), [(40, 65), (33, 33), (None, 301), (50, None), (17, 64)])
def test_evaluation_geometry_at_odd_sizes(resize, crop):
    for name in ("chelsea", "portrait", "small"):
        image = photograph(name)
        expected = image if resize is None else tvf.resize(image, [resize])
        expected = expected if crop is None else tvf.center_crop(expected, [crop])
        np.testing.assert_array_equal(evaluation_transform(resize, crop)(image), np.asarray(expected))


def test_grey_images_keep_one_channel_and_arrays_equal_images():
    image = photograph("camera").convert("L")
    transform = evaluation_transform(60, 51)
    expected = np.asarray(tvf.center_crop(tvf.resize(image, [60]), [51]))[..., None]
    np.testing.assert_array_equal(transform(image), expected)
    np.testing.assert_array_equal(transform(np.asarray(image)[..., None]), expected)
    with pytest.raises(UserError, match=r"uint8 \(H, W\).*float64"):
        transform(np.zeros((4, 4)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crop_and_flip_are_torchvisions(interpolation):
    mode = tv.InterpolationMode(interpolation)
    rng = np.random.default_rng(0)
    transform = TrainingTransform(64, interpolation=interpolation)
    for name in NAMES:
        image = photograph(name)
        for flip in (False, True):
            crop = random_resized_crop(rng, image.size[::-1], transform.scale, transform.ratio)
            expected = tvf.resized_crop(image, *crop, [64, 64], mode)
            expected = tvf.hflip(expected) if flip else expected
            for given in (image, np.asarray(image), np.asarray(image)[::-1][::-1]):
                np.testing.assert_array_equal(np.asarray(transform.crop_and_flip(given, crop, flip=flip)), expected)


def same_distribution(ours, theirs):
    """Kolmogorov and Smirnov's distance, below what two samples of one distribution exceed once in a million."""
    values = np.union1d(ours, theirs)
    ranks = [np.searchsorted(np.sort(sample), values, "right") / len(sample) for sample in (ours, theirs)]
    assert np.abs(ranks[0] - ranks[1]).max() < 2.7 * np.sqrt(1 / len(ours) + 1 / len(theirs))


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((375, 500), (3 / 4, 4 / 3)), ((40, 400), (3 / 4, 4 / 3)), ((400, 40), (3 / 4, 4 / 3)), ((90, 90), (0.2, 2.0))],
)
def test_random_resized_crop_is_distributed_as_torchvisions(size, ratio):
    rng, count = np.random.default_rng(1), 4000
    torch.manual_seed(1)
    image = torch.empty(3, *size)
    scale = (0.08, 1.0)
    ours = np.array([random_resized_crop(rng, size, scale, ratio) for _ in range(count)])
    theirs = np.array([tv.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)])
    for column in range(4):
        same_distribution(ours[:, column], theirs[:, column])


TRIVIAL, RAND = tv.TrivialAugmentWide(), tv.RandAugment()
SIZE = (37, 53)  # height, width


@pytest.mark.parametrize("operation", OPERATIONS)
def test_augmentation_magnitudes_are_torchvisions(operation):
    for space, ranges in [
        (TRIVIAL._augmentation_space(BINS), TRIVIAL_RANGES),
        (RAND._augmentation_space(BINS, SIZE), RAND_RANGES),
    ]:
        magnitudes, signed = space[operation]
        last, ours_signed = ranges[operation]
        if ranges is RAND_RANGES and operation.startswith("Translate"):
            last = 150.0 / 331.0 * SIZE[operation == "TranslateX"]
        assert ours_signed == signed
        expected = [float(m) for m in magnitudes] if magnitudes.ndim else [0.0] * BINS
        assert [magnitude_of(operation, last, b) for b in range(BINS)] == expected
    assert list(space) == list(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_augmentations_are_torchvisions(operation):
    last, signed = TRIVIAL_RANGES[operation]
    for image in (photograph("china").resize((53, 37)), photograph("camera").convert("L").resize((40, 41))):
        for bin_ in (0, 1, 9, 20, 30):
            for sign in (1, -1) if signed else (1,):
                magnitude = sign * magnitude_of(operation, last, bin_)
                for name in ("nearest", "bilinear"):
                    expected = _apply_op(image, operation, magnitude, tv.InterpolationMode(name), None)
                    ours = apply_operation(image, operation, magnitude, RESAMPLING[name])
                    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_augmentations_are_drawn_as_torchvisions(monkeypatch):
    from torchvision.transforms import autoaugment

    seen = []
    monkeypatch.setattr(
        autoaugment, "_apply_op", lambda image, name, magnitude, **_: seen.append((name, magnitude)) or image
    )
    torch.manual_seed(2)
    rng, count, image = np.random.default_rng(2), 6000, Image.new("RGB", SIZE[::-1])
    for policy, draw in [(TRIVIAL, draw_trivial), (RAND, lambda rng: draw_rand(rng, image.size, 9))]:
        seen.clear()
        while len(seen) < count:
            policy(image)
        ours = [draw(rng) for _ in range(count)]
        for operation in OPERATIONS:
            mine = [m for name, m in ours if name == operation]
            theirs = [m for name, m in seen if name == operation]
            assert abs(len(mine) - len(theirs)) < 5 * np.sqrt(2 * count / len(OPERATIONS))
            same_distribution(mine, theirs)
            if policy is RAND:
                assert set(mine) == set(theirs)


def test_training_transforms_depend_on_the_generator_alone():
    image = np.asarray(photograph("coffee"))
    for augment in ("none", "trivial_augment_wide", "rand_augment"):
        transform = TrainingTransform(32, augment=augment)
        first = transform(image, np.random.default_rng([7, 1]))
        assert first.shape == (32, 32, 3)
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, transform(image, np.random.default_rng([7, 1])))
        assert (first != transform(image, np.random.default_rng([7, 2]))).any()
    np.testing.assert_array_equal(transform(image, 5), transform(image, np.random.default_rng(5)))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_padded_cropped_and_flipped_as_torchvision_does(channels):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (6, 9, 12, channels), np.uint8)
    top, left = rng.integers(0, 5, (2, 6))
    flip = np.array([True, False, True, True, False, False])
    ours = SmallImageTransform(padding=2).pad_crop_flip(images, top, left, flip)
    for i, image in enumerate(images):
        pil = Image.fromarray(image[..., 0] if channels == 1 else image)
        expected = tvf.crop(tvf.pad(pil, 2), top[i], left[i], 9, 12)
        expected = np.asarray(tvf.hflip(expected) if flip[i] else expected).reshape(9, 12, channels)
        np.testing.assert_array_equal(ours[i], expected)


def test_small_image_draws_cover_every_offset_evenly():
    transform = SmallImageTransform(padding=1)
    marked = np.zeros((1, 3, 3, 1), np.uint8)
    marked[0, 1, 1] = 255
    outputs = [transform(marked[0], seed) for seed in range(900)]
    where = np.array([np.argwhere(out[..., 0])[0] for out in outputs])
    counts = np.bincount(where[:, 0] * 3 + where[:, 1], minlength=9)
    assert counts.min() > 60
    assert counts.max() < 140
    flipped = SmallImageTransform(padding=0)
    edge = np.arange(4, dtype=np.uint8).reshape(1, 4, 1)
    assert 380 < sum(flipped(edge, seed)[0, 0, 0] == 3 for seed in range(900)) < 520


def test_small_image_resize_is_pil_exact_and_batched_equals_single():
    images = np.random.default_rng(4).integers(0, 256, (5, 28, 28, 1), np.uint8)
    transform = SmallImageTransform(33, padding=3)
    resized = np.stack([transform.fixed(image) for image in images])
    expected = [tvf.resize(Image.fromarray(image[..., 0]), [33]) for image in images]
    np.testing.assert_array_equal(resized[..., 0], [np.asarray(image) for image in expected])
    batched = transform.augment_batch(resized, (np.random.default_rng(seed) for seed in range(5)))
    np.testing.assert_array_equal(batched, [transform(image, seed) for seed, image in enumerate(images)])
