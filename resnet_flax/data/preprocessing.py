"""The preprocessing that a set of weights needs, as data that can be stored with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
from resnet_flax.data.transforms import EvaluationTransform


@dataclass(frozen=True)
class Preprocessing:
    """Resize and crop on the host, then (x / 255 - mean) / std per channel on the device."""

    transform: EvaluationTransform = field(default_factory=EvaluationTransform)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def for_channels(self, channels: int) -> Preprocessing:
        """The same for images with another number of channels: each gets the average over the old ones."""
        if len(self.mean) in (1, channels):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def to_metadata(self) -> dict[str, str]:
        """As strings, for the metadata of a .safetensors file."""
        return {
            "eval_transform": json.dumps(asdict(self.transform)),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing | None:
        """The inverse of `to_metadata`; None for metadata without preprocessing."""
        if "eval_transform" not in metadata:
            return None
        transform = EvaluationTransform(**json.loads(metadata["eval_transform"]))
        return cls(transform, tuple(json.loads(metadata["mean"])), tuple(json.loads(metadata["std"])))

    def __str__(self) -> str:
        resize, crop = self.transform.resize_size, self.transform.crop_size
        steps = [f"resize {resize} ({self.transform.interpolation})"] if resize else []
        steps += [f"center crop {crop}"] if crop else []
        return ", ".join([*steps, f"mean {self.mean}", f"std {self.std}"])
