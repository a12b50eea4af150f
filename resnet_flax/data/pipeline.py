"""Batches for training and evaluation, read by Grain and reproducible from (seed, step) alone.

A batch is an element of a random-access sequence; its epoch, samples and random numbers follow from its step. So the
stream does not depend on the number of workers, resuming means asking for a later step, and hosts need not communicate.
Grain reads in threads, or in worker processes that pass batches through shared memory.
"""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from parity.options import Range
from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.source import Source
from resnet_flax.data.stream import BatchStream, cores
from resnet_flax.data.transforms import BatchTransform
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Batch = dict[str, np.ndarray]
    Damaged = tuple[int, str, str]  # index, name and reason of a `CorruptImage`
    ImageFunction = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # a `Transform`, or any such function


def steps_per_epoch(images: int, batch_size: int, name: str = "the data set") -> int:
    """The number of whole batches in an epoch of `images`; the rest is dropped.

    Each epoch is shuffled again, so the samples that one epoch drops appear in others.

    Args:
        batch_size: the global one, over all hosts.
        name: what the error calls the data set.

    Raises:
        UserError: if there are fewer images than one batch.
    """
    if images < batch_size:
        raise UserError(
            f"{name} has {images:,} images, fewer than one batch of {batch_size:,}; use a smaller batch size"
        )
    return images // batch_size


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


@dataclass(frozen=True)
class TrainingOrder:
    """The samples that one host (shard) reads at each step.

    The global batch of a step is split into `shard_count` consecutive parts, so it has the same samples in the same
    order for any number of hosts. With `repeats` > 1 an epoch shows each of length / repeats images that many times,
    with different augmentation (Hoffer et al., "Augment your batch", 2020; torchvision's RASampler). The repeats of an
    image are spread over the batch, because mixup blends neighbours.
    """

    length: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    shard_index: int
    shard_count: int
    repeats: int

    def __call__(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(epoch, sample indices (B,), the number of each one's repeat (B,)) for a global step."""
        epoch, step = divmod(step, self.steps_per_epoch)
        size = self.batch_size * self.shard_count
        positions = np.arange(step * size, (step + 1) * size)
        positions = positions[np.argsort(positions % self.repeats, kind="stable")]
        mine = positions[self.shard_index * self.batch_size :][: self.batch_size]
        return epoch, _permutation(self.seed, epoch, self.length)[mine // self.repeats], mine % self.repeats


class Reader:
    """Transformed samples by index; in whole batches if source and transform allow it and the set fits in memory."""

    def __init__(self, source: Source, transform: ImageFunction, skip_corrupt: int):
        self.source, self.transform, self.skip_corrupt = source, transform, skip_corrupt
        self.images: np.ndarray | None = None
        if isinstance(transform, BatchTransform):
            self.images, self.augment_batch = source.transformed(transform.fixed), transform.augment_batch

    def training(self, indices: np.ndarray, rngs: Iterable[np.random.Generator]) -> dict[str, Any]:
        """A batch; each damaged image is replaced by the next readable one, and listed in "damaged"."""
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
                return {"damaged": damaged}  # more than allowed: the stream raises
            images.append(image)
            labels.append(label)
            read.append(candidate)
        return self._batch(_stack(images), labels, read, damaged)

    def evaluation(self, indices: np.ndarray, batch_size: int) -> dict[str, Any]:
        """A batch, zero-padded to `batch_size`; "mask" is False for padding and for damaged images."""
        damaged: list[Damaged] = []
        if self.images is not None:
            images, labels = self.images[indices], self.source.labels[indices]
            mask = np.ones(len(indices), bool)
        else:
            samples = [self._sample(int(index), None, damaged) for index in indices]
            mask = np.array([image is not None for image, _ in samples], bool)
            good = [image for image, _ in samples if image is not None]
            # A shard may have no sample left for the last batch; any readable image then gives the shape.
            blank = np.zeros_like(good[0] if good else self._any_image(damaged))
            images = _stack([blank if image is None else image for image, _ in samples] or [blank])[: len(indices)]
            labels = [label for _, label in samples]
        return {
            "image": _pad(images, batch_size),
            "label": _pad(np.asarray(labels, np.int32), batch_size),
            "mask": _pad(mask, batch_size),
            "damaged": damaged,
        }

    def _sample(self, index: int, rng, damaged: list[Damaged]) -> tuple[np.ndarray | None, int]:
        try:
            sample = self.source[index]
        except CorruptImage as error:
            damaged.append((index, error.name, error.reason))
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
    """Position -> training batch, starting at `start_step`."""

    count = sys.maxsize

    def __init__(self, reader: Reader, order: TrainingOrder, start_step: int):
        self.reader, self.order, self.start_step = reader, order, start_step

    def __len__(self) -> int:
        return sys.maxsize  # infinite, as far as Grain knows

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        position = index.__index__()
        epoch, indices, repeats = self.order(self.start_step + position)
        keys = zip(indices.tolist(), repeats.tolist(), strict=True)
        rngs = (np.random.default_rng([self.order.seed, epoch, index, repeat]) for index, repeat in keys)
        return self.reader.training(indices, rngs)


class EvaluationBatches:
    """Position -> evaluation batch: consecutive global batches, each split into `shard_count` consecutive parts.

    To Grain the sequence is infinite, with empty batches after `count`: the worker processes of Grain 0.2.18 leak the
    shared memory of the last batches of a finite one.
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


def _check(workers: int, shard_index: int, shard_count: int, **least: tuple[int, int]) -> None:
    """Checks the arguments that both streams have, and others given as name=(value, its minimum)."""
    for name, (value, minimum) in {"workers": (workers, 0), "shard_count": (shard_count, 1), **least}.items():
        Range(ge=minimum).check(name, value)
    Range(ge=0, le=shard_count - 1).check("shard_index", shard_index)
    if workers > cores():
        warnings.warn(f"{workers} workers on {cores()} cores slow each other down", stacklevel=3)


def training_batches(
    source: Source,
    transform: ImageFunction,
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
    """An infinite stream of {"image": uint8 (B, H, W, C), "label": int32 (B,), "index": int64 (B,)}.

    The batch of a step depends on `seed` and the step alone, not on `workers` or on where the stream started. Every
    epoch is a new permutation, without its last incomplete batch (`steps_per_epoch`). The pixels of a sample are a pure
    function of (seed, epoch, index, repeat).

    Args:
        transform: called with an image, uint8 (H, W, C), and the sample's own numpy Generator.
        batch_size: B, per host; the global batch is `batch_size * shard_count`.
        start_step: the global step of the first batch; to resume, the number of steps already taken.
        workers: processes that read and transform; 0 uses threads of this process, as do in-memory sources whose
            transform works on whole batches.
        shard_index, shard_count: this host among all hosts (`jax.process_index()`, `jax.process_count()`).
        repeats: how many times an epoch augments and shows each of its images (repeated augmentation).
        skip_corrupt: the number of damaged images to replace by their successors before giving up.

    Raises:
        UsageError: immediately, for an argument out of range.
        CorruptImage: while iterating, at the first damaged image beyond `skip_corrupt`.
    """
    _check(
        workers,
        shard_index,
        shard_count,
        batch_size=(batch_size, 1),
        seed=(seed, 0),
        start_step=(start_step, 0),
        repeats=(repeats, 1),
        skip_corrupt=(skip_corrupt, 0),
    )
    steps = steps_per_epoch(len(source), batch_size * shard_count, f"{source.spec} {source.split}")
    reader = Reader(source, transform, skip_corrupt)
    order = TrainingOrder(len(source), steps, batch_size, seed, shard_index, shard_count, repeats)
    return BatchStream(TrainingBatches(reader, order, start_step), workers)


def evaluation_batches(
    source: Source,
    transform: ImageFunction,
    *,
    batch_size: int,
    workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    skip_corrupt: int = 0,
) -> Iterator[Batch]:
    """{"image": uint8 (B, H, W, C), "label": int32 (B,), "mask": bool (B,)}, every sample once over all shards.

    All shards yield the same number of batches. The last ones are zero-padded; "mask" is False there, and for damaged
    images that `skip_corrupt` allows. Arguments and errors as for `training_batches`.
    """
    _check(workers, shard_index, shard_count, batch_size=(batch_size, 1), skip_corrupt=(skip_corrupt, 0))
    reader = Reader(source, transform, skip_corrupt)
    return BatchStream(EvaluationBatches(reader, batch_size, shard_index, shard_count), workers)
