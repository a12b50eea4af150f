"""From an image of any size to the uint8 array a model is fed, exactly as torchvision's PIL path does it.

A transform is a small frozen dataclass: a recipe contains it as data, and it can be compared, hashed, pickled and
printed. Every random choice comes from the generator passed in. Normalisation, mixup, cutmix and random erasing run on
the device (`resnet_flax.data.on_device`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, runtime_checkable

import numpy as np
from PIL import Image

from parity.options import Fraction, NonNegativeInt, Pixels, Range
from resnet_flax.data.augment import BINS, rand_augment, trivial_augment_wide
from resnet_flax.data.fast_resize import FILTERS, Resize, fast_resize
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

Interpolation = Literal["nearest", "bilinear", "bicubic"]
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
Crop = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width


class Transform(Protocol):
    """What a recipe's transform offers."""

    @property
    def is_random(self) -> bool:
        """Whether two calls with the same image may differ."""
        ...

    def resized(self, size: int) -> Self:
        """The same transform for output images of `size` by `size` pixels."""
        ...

    def output_size(self, image: Size | None) -> Size | None:
        """(height, width) of the output for an image of that (height, width).

        For None, an image of unknown size, it is None where the output depends on the image.
        """
        ...

    def __call__(self, image: Image.Image | np.ndarray, rng: np.random.Generator | int, /) -> np.ndarray:
        """uint8 (H, W, C), C 1 for grey images and 3 otherwise: a function of the image and the generator or seed."""
        ...


@runtime_checkable
class BatchTransform(Protocol):
    """A transform whose deterministic part comes first, so that it can be done once and the rest in whole batches."""

    @property
    def fixed(self) -> EvaluationTransform | None:
        """The deterministic part, None for no change."""
        ...

    def augment_batch(self, images: np.ndarray, rngs: Iterable[np.random.Generator], /) -> np.ndarray:
        """The random part for a batch, uint8 (B, H, W, C), one generator per image."""
        ...


def to_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image in mode L or RGB: arrays are uint8 (H, W), (H, W, 1) or (H, W, 3); other modes become RGB."""
    if isinstance(image, Image.Image):
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise UserError(f"an image array must be uint8 (H, W), (H, W, 1) or (H, W, 3); got {image.dtype} {image.shape}")
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def window_to_pil(image: np.ndarray, crop: Crop) -> Image.Image:
    """`to_pil` of a window of an array, copied once: `Image.fromarray` of a slice copies twice."""
    top, left, height, width = crop
    if image.shape[-1] != 3 or image.dtype != np.uint8 or not image.flags.c_contiguous:
        return to_pil(image[top : top + height, left : left + width])
    stride = 3 * image.shape[1]
    pixels = image.reshape(-1)[top * stride + 3 * left :]
    return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", stride, 1)


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels of an L or RGB image as uint8 (H, W, 1) or (H, W, 3)."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def resize_shorter(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Image.Image:
    """Resizes the shorter side to `size`, the longer to int(size * long / short), as torchvision's `Resize(size)`."""
    width, height = image.size
    target = shorter_resized((height, width), size)[::-1]
    return image if target == image.size else image.resize(target, RESAMPLING[interpolation])


def shorter_resized(image: Size, size: int) -> Size:
    """(height, width) of an image of that size after `resize_shorter`."""
    height, width = image
    scaled = int(size * max(image) / min(image))
    return (scaled, size) if width <= height else (size, scaled)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central size x size pixels, padded with black where the image is smaller, as in torchvision.

    Offsets are `int(round((side - size) / 2))`, with Python's rounding of halves to even; where the padding is odd, the
    right and bottom get the larger half.
    """
    width, height = image.size
    pad_left, pad_top = max(size - width, 0) // 2, max(size - height, 0) // 2
    left = -pad_left if width < size else round((width - size) / 2)
    top = -pad_top if height < size else round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))  # PIL fills the outside with zeros


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side, then crop the centre: torchvision's `ImageClassification` preset before normalisation.

    The V2 weights use `resize_size=232, crop_size=224`, V1 256 and 224. None skips a step; with both None images pass
    unchanged.
    """

    resize_size: Pixels | None = 232
    crop_size: Pixels | None = 224
    interpolation: Interpolation = "bilinear"

    is_random = False

    def resized(self, size: int) -> EvaluationTransform:
        """Scales `resize_size` in proportion, so that the same share of an image is cropped away."""
        resize, crop = self.resize_size, self.crop_size
        return replace(self, resize_size=round(resize * size / crop) if resize and crop else size, crop_size=size)

    def output_size(self, image: Size | None) -> Size | None:
        if self.crop_size is not None:
            return self.crop_size, self.crop_size
        if image is None or self.resize_size is None:
            return image
        return shorter_resized(image, self.resize_size)

    def __call__(self, image: Image.Image | np.ndarray, rng: object = None) -> np.ndarray:
        """uint8 (crop, crop, C), C 1 for grey images and 3 otherwise. `rng` is ignored."""
        image = to_pil(image)
        if self.resize_size is not None:
            image = resize_shorter(image, self.resize_size, self.interpolation)
        if self.crop_size is not None:
            image = center_crop(image, self.crop_size)
        return to_array(image)

    @property
    def fixed(self) -> EvaluationTransform:
        """The deterministic part: all of it."""
        return self

    def augment_batch(self, images: np.ndarray, rngs: object) -> np.ndarray:
        """The random part: nothing."""
        return images

    def keeps(self, shape: tuple[int, ...]) -> bool:
        """Whether images of this shape (H, W, C) come out as they went in."""
        short, sides = min(shape[:2]), set(shape[:2])
        return self.resize_size in (None, short) and (self.crop_size is None or sides == {self.crop_size})


def random_resized_crop(rng: np.random.Generator, size: tuple[int, int], scale, ratio) -> Crop:
    """Draws a crop of an image of `size` (height, width) from torchvision's distribution.

    Ten attempts with an area uniform in `scale` (a fraction of the image) and an aspect ratio log-uniform in `ratio`;
    after that the largest central crop with an allowed aspect ratio.
    """
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class TrainingTransform:
    """RandomResizedCrop, horizontal flip, and optionally TrivialAugmentWide or RandAugment: torchvision's recipes.

    The defaults are the V1 recipe's; V2 has `crop_size=176, augment="trivial_augment_wide"`. RandAugment's magnitude is
    one of 31 bins; `rand_augment_ops` operations are applied one after another.
    """

    crop_size: Pixels = 224
    scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.08, 1.0)
    ratio: Annotated[tuple[float, float], Range(gt=0)] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    augment: Literal["none", "trivial_augment_wide", "rand_augment"] = "none"
    rand_augment_ops: NonNegativeInt = 2
    rand_augment_magnitude: Annotated[int, Range(ge=0, le=BINS - 1)] = 9
    interpolation: Interpolation = "bilinear"
    resize: Resize = "exact"
    """exact: torchvision's pixels. fast: up to rounding, see docs/data.md; needs the extra fast."""

    is_random = True

    def resized(self, size: int) -> TrainingTransform:
        return replace(self, crop_size=size)

    def output_size(self, image: Size | None) -> Size:
        return self.crop_size, self.crop_size

    def __call__(self, image: Image.Image | np.ndarray, rng: np.random.Generator | int) -> np.ndarray:
        """uint8 (crop, crop, C): a pure function of the image and the generator's (or seed's) state."""
        rng = np.random.default_rng(rng)
        size = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        crop = random_resized_crop(rng, size, self.scale, self.ratio)
        result = self.crop_and_flip(image, crop, flip=rng.random() < self.flip)
        resample = RESAMPLING[self.interpolation]
        if self.augment == "trivial_augment_wide":
            result = trivial_augment_wide(result, rng, resample)
        elif self.augment == "rand_augment":
            result = rand_augment(result, rng, resample, self.rand_augment_ops, self.rand_augment_magnitude)
        return to_array(result)

    def crop_and_flip(self, image: Image.Image | np.ndarray, crop: Crop, *, flip: bool) -> Image.Image:
        """The deterministic part: the crop resized to the target, mirrored if `flip`."""
        top, left, height, width = crop
        if isinstance(image, np.ndarray):
            region = window_to_pil(image, crop)
        else:
            region = to_pil(image).crop((left, top, left + width, top + height))
        if region.size != (self.crop_size, self.crop_size):
            size = self.crop_size, self.crop_size
            if self.resize == "fast" and self.interpolation in FILTERS:
                region = fast_resize(region, size, self.interpolation)
            else:
                region = region.resize(size, RESAMPLING[self.interpolation])
        return region.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else region


@dataclass(frozen=True)
class SmallImageTransform:
    """For CIFAR, MNIST and the like: resize to size x size, pad with black, crop size x size at random, maybe flip.

    With `size=None` images keep their size, and all must have the same. With `padding=0, flip=0` nothing is random.
    Digits and letters must not be mirrored: use `flip=0` for them.
    """

    size: Pixels | None = None
    padding: Annotated[int, Range(ge=0, le=2**14)] = 4
    flip: Fraction = 0.5

    @property
    def is_random(self) -> bool:
        return bool(self.padding or self.flip)

    def resized(self, size: int) -> SmallImageTransform:
        return replace(self, size=size)

    def output_size(self, image: Size | None) -> Size | None:
        return image if self.size is None else (self.size, self.size)

    @property
    def fixed(self) -> EvaluationTransform | None:
        """The deterministic part, which comes first."""
        return None if self.size is None else EvaluationTransform(self.size, self.size)

    def __call__(self, image: Image.Image | np.ndarray, rng: np.random.Generator | int) -> np.ndarray:
        """uint8 (size, size, C): a pure function of the image and the generator's (or seed's) state."""
        array = to_array(to_pil(image)) if self.fixed is None else self.fixed(image)
        return self.augment_batch(array[None], [np.random.default_rng(rng)])[0]

    def augment_batch(self, images: np.ndarray, rngs: Iterable[np.random.Generator]) -> np.ndarray:
        """The random part for a whole batch, uint8 (B, H, W, C), one generator per image."""
        draws = np.array([rng.random(3) for rng in rngs]) if self.padding or self.flip else np.zeros((len(images), 3))
        top, left = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64).T
        return self.pad_crop_flip(images, top, left, draws[:, 2] < self.flip)

    def pad_crop_flip(self, images: np.ndarray, top: np.ndarray, left: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """Pads (B, H, W, C), crops each image at its (top, left), and mirrors it if `flip`; all three are (B,)."""
        if self.padding:
            batch, height, width, _ = images.shape
            p = self.padding
            padded = np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
            images = windows[np.arange(batch), top, left].transpose(0, 2, 3, 1)
        return np.where(flip[:, None, None, None], images[:, :, ::-1], images) if flip.any() else images


TRANSFORMS = {kind.__name__: kind for kind in (EvaluationTransform, TrainingTransform, SmallImageTransform)}
"""{class name: class}: the transforms that a recipe can have."""


def evaluation_transform(
    resize_size: int | None = 232, crop_size: int | None = 224, interpolation: Interpolation = "bilinear"
) -> EvaluationTransform:
    """Shorter side to `resize_size`, centre crop: PIL image or array -> uint8 (crop, crop, C), torchvision's pixels."""
    return EvaluationTransform(resize_size, crop_size, interpolation)
