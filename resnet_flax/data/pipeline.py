"""Batches for training and evaluation, over Grain: reproducible from (seed, step) alone.

A batch is an element of a random-access sequence, computed from its step by arithmetic: which epoch, which samples,
which random numbers. So the stream is the same for every number of workers, resuming means asking for a later
step, and hosts need not talk to each other. Grain runs the reading, in threads or in worker processes that hand
batches over in shared memory.
"""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.source import Source
from resnet_flax.data.stream import BatchStream, cores
from resnet_flax.data.transforms import EvaluationTransform, SmallImageTransform
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Batch = dict[str, np.ndarray]
    Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def steps_per_epoch(source: Source, batch_size: int, shard_count: int = 1) -> int:
    """How many whole global batches (`batch_size * shard_count` samples) an epoch has; its rest is dropped.

    Each epoch is shuffled anew, so what one epoch drops another sees.

    Raises:
        UserError: not even one.
    """
    steps = len(source) // (batch_size * shard_count)
    if not steps:
        raise UserError(
            f"{source.spec} {source.split} holds {len(source):,} images, fewer than one batch of "
            f"{batch_size * shard_count:,}; choose a smaller batch size"
        )
    return steps


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


@dataclass(frozen=True)
class TrainingOrder:
    """Which samples one host (shard) reads at each step.

    The global batch of a step is cut into `shard_count` consecutive parts, so it holds the same samples in the same
    order however many hosts share it. With `repeats` > 1 an epoch shows each of length / repeats images that often,
    under different augmentations (Hoffer et al., "Augment your batch", 2020; torchvision's RASampler). The repeats of
    an image are spread over the batch: mixup blends neighbours.
    """

    length: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    shard_index: int
    shard_count: int
    repeats: int

    def __call__(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(epoch, sample indices (B,), which repeat of it each is (B,)) for a global step."""
        epoch, step = divmod(step, self.steps_per_epoch)
        size = self.batch_size * self.shard_count
        positions = np.arange(step * size, (step + 1) * size)
        positions = positions[np.argsort(positions % self.repeats, kind="stable")]
        mine = positions[self.shard_index * self.batch_size :][: self.batch_size]
        return epoch, _permutation(self.seed, epoch, self.length)[mine // self.repeats], mine % self.repeats


class Reader:
    """Samples by index, transformed; whole batches at once where source and transform allow to hold all in memory."""

    def __init__(self, source: Source, transform: Transform, skip_corrupt: int):
        self.source, self.transform, self.skip_corrupt = source, transform, skip_corrupt
        self.images: np.ndarray | None = None
        if isinstance(transform, EvaluationTransform | SmallImageTransform):
            self.images, self.augment_batch = source.transformed(transform.fixed), transform.augment_batch

    def training(self, indices: np.ndarray, rngs: Iterable[np.random.Generator]) -> dict[str, Any]:
        """A batch. A damaged image gives its place to the next one that can be read, and is listed in "damaged"."""
        if self.images is not None:
            images = self.augment_batch(self.images[indices], rngs)
            return self._batch(images, self.source.labels[indices], indices, [])
        images, labels, read, damaged = [], [], [], []
        for index, rng in zip(indices, rngs, strict=True):
            for candidate in itertools.islice(itertools.count(int(index)), self.skip_corrupt + 1):
                candidate %= len(self.source)
                image, label = self._sample(candidate, rng, damaged)
                if image is not None:
                    break
            else:
                if self.skip_corrupt >= len(self.source):
                    raise self._none_readable()
                return {"damaged": damaged}  # more than allowed: the consumer raises
            images.append(image)
            labels.append(label)
            read.append(candidate)
        return self._batch(_stack(images), labels, read, damaged)

    def evaluation(self, indices: np.ndarray, batch_size: int) -> dict[str, Any]:
        """A batch padded with zeros to `batch_size`; "mask" is False there and for damaged images."""
        damaged: list[tuple[int, str]] = []
        if self.images is not None:
            images, labels = self.images[indices], self.source.labels[indices]
            mask = np.ones(len(indices), bool)
        else:
            samples = [self._sample(int(index), None, damaged) for index in indices]
            mask = np.array([image is not None for image, _ in samples], bool)
            good = [image for image, _ in samples if image is not None]
            # A shard may have no sample left for the last batch; its shape then comes from any readable image.
            blank = np.zeros_like(good[0] if good else self._any_image(damaged))
            images = _stack([blank if image is None else image for image, _ in samples] or [blank])[: len(indices)]
            labels = [label for _, label in samples]
        return {
            "image": _pad(images, batch_size),
            "label": _pad(np.asarray(labels, np.int32), batch_size),
            "mask": _pad(mask, batch_size),
            "damaged": damaged,
        }

    def _sample(self, index: int, rng, damaged: list[tuple[int, str]]) -> tuple[np.ndarray | None, int]:
        try:
            sample = self.source[index]
        except CorruptImage as error:
            damaged.append((index, str(error)))
            return None, 0
        return self.transform(sample["image"], rng), sample["label"]

    def _any_image(self, damaged: list) -> np.ndarray:
        for index in range(len(self.source)):
            image, _ = self._sample(index, None, damaged)
            if image is not None:
                return image
        raise self._none_readable()

    def _none_readable(self) -> UserError:
        return UserError(f"{self.source.spec} {self.source.split}: none of its {len(self.source):,} images can be read")

    @staticmethod
    def _batch(images: np.ndarray, labels, indices, damaged: list) -> dict[str, Any]:
        return {
            "image": np.ascontiguousarray(images),
            "label": np.asarray(labels, np.int32),
            "index": np.asarray(indices, np.int64),
            "damaged": damaged,
        }


def _stack(images: list[np.ndarray]) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(
            f"images of {' and '.join(map(str, sorted(shapes)))} cannot share a batch; use a transform that resizes"
        )
    return np.stack(images)


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])


class TrainingBatches:
    """Position -> training batch, from `start_step` on."""

    count = sys.maxsize

    def __init__(self, reader: Reader, order: TrainingOrder, start_step: int):
        self.reader, self.order, self.start_step = reader, order, start_step

    def __len__(self) -> int:
        return sys.maxsize  # endless as far as Grain is concerned

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        position = index.__index__()
        epoch, indices, repeats = self.order(self.start_step + position)
        keys = zip(indices.tolist(), repeats.tolist(), strict=True)
        rngs = (np.random.default_rng([self.order.seed, epoch, index, repeat]) for index, repeat in keys)
        return self.reader.training(indices, rngs)


class EvaluationBatches:
    """Position -> evaluation batch: consecutive global batches, each cut into `shard_count` consecutive parts.

    For Grain it is endless, with nothing in the batches after `count`: its worker processes leak the shared memory of
    the last batches of a sequence that ends (seen with Grain 0.2.18).
    """

    def __init__(self, reader: Reader, batch_size: int, shard_index: int, shard_count: int):
        self.reader, self.batch_size = reader, batch_size
        self.shard_index, self.shard_count = shard_index, shard_count
        self.count = -(-len(reader.source) // (batch_size * shard_count))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        position = index.__index__()
        if position >= self.count:
            return {"damaged": []}
        start = (position * self.shard_count + self.shard_index) * self.batch_size
        stop = min(start + self.batch_size, len(self.reader.source))
        return self.reader.evaluation(np.arange(start, stop), self.batch_size)


def _check(batch_size: int, workers: int, shard_index: int, shard_count: int, **at_least_zero: int) -> None:
    for name, value, least in [
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("shard_count", shard_count, 1),
        *((name, value, 0) for name, value in at_least_zero.items()),
    ]:
        if value < least:
            raise UserError(f"{name} should be at least {least}, found {value}")
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index should be 0 to {shard_count - 1}, found {shard_index}")
    if workers > cores():
        warnings.warn(f"{workers} workers on {cores()} cores only get in each other's way", stacklevel=3)


def training_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    repeats: int = 1,
    skip_corrupt: int = 0,
) -> Iterator[Batch]:
    """An endless stream of {"image": uint8 (B, H, W, C), "label": int32 (B,), "index": int64 (B,)}.

    The batch of a step depends on `seed` and the step alone: not on `workers`, nor on where the stream began.
    Every epoch is a fresh permutation, without its last incomplete batch (`steps_per_epoch`). The pixels of a sample
    are a pure function of (seed, epoch, index, repeat).

    Args:
        transform: called with an image, uint8 (H, W, C), and a numpy Generator of the sample's own.
        batch_size: B, per host; the global batch is `batch_size * shard_count`.
        start_step: the global step of the first batch; to resume, the number of steps already taken.
        workers: processes that read and transform; 0 does it in threads of this one, and so it is done anyway for
            in-memory sources whose transform works on whole batches.
        shard_index, shard_count: this host among all hosts (`jax.process_index()`, `jax.process_count()`).
        repeats: how often each image of an epoch is augmented and shown (repeated augmentation).
        skip_corrupt: how many different damaged images to replace by their successors before giving up.

    Raises:
        UserError: at once for unusable arguments.
        CorruptImage: while iterating, at a damaged image too many.
    """
    _check(batch_size, workers, shard_index, shard_count, seed=seed, start_step=start_step, skip_corrupt=skip_corrupt)
    if repeats < 1:
        raise UserError(f"repeats should be at least 1, found {repeats}")
    steps = steps_per_epoch(source, batch_size, shard_count)
    reader = Reader(source, transform, skip_corrupt)
    order = TrainingOrder(len(source), steps, batch_size, seed, shard_index, shard_count, repeats)
    return BatchStream(TrainingBatches(reader, order, start_step), workers)


def evaluation_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    skip_corrupt: int = 0,
) -> Iterator[Batch]:
    """{"image": uint8 (B, H, W, C), "label": int32 (B,), "mask": bool (B,)}, every sample once over all shards.

    All shards yield the same number of batches; the last are padded with zeros where "mask" is False, as it is for
    damaged images that `skip_corrupt` allows. Arguments and errors as for `training_batches`.
    """
    _check(batch_size, workers, shard_index, shard_count, skip_corrupt=skip_corrupt)
    reader = Reader(source, transform, skip_corrupt)
    return BatchStream(EvaluationBatches(reader, batch_size, shard_index, shard_count), workers)
