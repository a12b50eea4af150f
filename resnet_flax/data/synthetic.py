"""Noise of a given shape, for benchmarks that must not measure a disk or a decoder."""

from __future__ import annotations

import re

import numpy as np

from resnet_flax.data.source import Sample, Source, SourceOptions
from resnet_flax.data.splits import choose
from resnet_flax.errors import UserError

LARGEST = 4096  # pixels of a side


class SyntheticSource(Source):
    """`synthetic:HxWxC:N`: N images of fixed uint8 noise, labels i mod min(N, 1000). An image costs one copy."""

    def __init__(self, description: str, split: str = "train", *, options: SourceOptions | None = None):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})x([13]):(\d{1,9})", description)
        shape = tuple(map(int, match.groups())) if match else (0,)
        if 0 in shape or max(shape[:2]) > LARGEST:
            raise UserError(
                f"synthetic:{description} must be synthetic:HxWxC:N with H and W between 1 and {LARGEST}, C 1 or 3, "
                "and N below a billion, such as synthetic:224x224x3:1000"
            )
        *self._shape, self._length = shape
        self.spec, self.channels = f"synthetic:{description}", self._shape[2]
        if isinstance((options or SourceOptions()).split_by, float):
            raise UserError(f"--split-by is for images; {self.spec} has a test split of the same size")
        self.split = choose(split, ("train", "test"), name=self.spec).split
        self.origin = f"the {self.split} split of {self.spec}"
        self.class_names = tuple(str(label) for label in range(min(self._length, 1000)))
        # Windows into one block of noise, an odd stride apart: neighbours differ, and no image needs random numbers.
        rng = np.random.default_rng(self.split == "train")
        self._noise = rng.integers(0, 256, 2 * int(np.prod(self._shape)), np.uint8)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self._length, dtype=np.int64) % self.num_classes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        size = len(self._noise) // 2
        start = index * 997 % size
        return {
            "image": self._noise[start : start + size].reshape(self._shape).copy(),
            "label": index % self.num_classes,
        }
