"""The preprocessing that a set of weights needs, as data that can be stored with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from resnet_flax.data.decoding import Decoding
from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
from resnet_flax.data.transforms import RESAMPLING, EvaluationTransform

LARGEST = 65_536  # pixels of a side
KEPT = ("exif_orientation", "scale_16_bit")  # of `Decoding`; how large images may be is the reader's business


@dataclass(frozen=True)
class Preprocessing:
    """Resize and crop on the host, then (x / 255 - mean) / std per channel on the device."""

    transform: EvaluationTransform = field(default_factory=EvaluationTransform)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    decoding: Decoding = field(default_factory=Decoding)

    def for_channels(self, channels: int) -> Preprocessing:
        """The same for images with another number of channels: each gets the average over the old ones."""
        if len(self.mean) in (1, channels):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def to_metadata(self) -> dict[str, str]:
        """As strings, for the metadata of a .safetensors file."""
        text = {
            "eval_transform": json.dumps(asdict(self.transform)),
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
        }
        kept = {name: True for name in KEPT if getattr(self.decoding, name)}
        return text | ({"decoding": json.dumps(kept)} if kept else {})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing | None:
        """The inverse of `to_metadata`; None for metadata without preprocessing.

        Raises:
            ValueError: for anything that `to_metadata` does not write, with a sentence about it.
        """
        if "eval_transform" not in metadata:
            return None
        transform = _object(metadata, "eval_transform", [field.name for field in fields(EvaluationTransform)])
        for name in ("resize_size", "crop_size"):
            value = transform.get(name, 1)
            if value is not None and not (type(value) is int and 1 <= value <= LARGEST):
                raise ValueError(f"{name} is {value!r}, not a number of pixels between 1 and {LARGEST}")
        if transform.get("interpolation", "bilinear") not in RESAMPLING:
            raise ValueError(f"interpolation is {transform['interpolation']!r}, not one of {', '.join(RESAMPLING)}")
        mean, std = _numbers(metadata, "mean"), _numbers(metadata, "std")
        if len(mean) != len(std) and 1 not in (len(mean), len(std)):
            raise ValueError(f"mean has {len(mean)} values and std {len(std)}: one image cannot have both")
        if min(std) <= 0:
            raise ValueError(f"std is {list(std)}; every value must be above 0")
        decoding = _object(metadata, "decoding", KEPT) if "decoding" in metadata else {}
        if not all(isinstance(value, bool) for value in decoding.values()):
            raise ValueError(f"decoding is {decoding}, not true or false for each of {', '.join(KEPT)}")
        return cls(EvaluationTransform(**transform), mean, std, Decoding(**decoding))

    def __str__(self) -> str:
        resize, crop = self.transform.resize_size, self.transform.crop_size
        steps = [f"resize {resize} ({self.transform.interpolation})"] if resize else []
        steps += [f"center crop {crop}"] if crop else []
        steps += ["EXIF orientation applied"] if self.decoding.exif_orientation else []
        steps += ["16 bits scaled to 8"] if self.decoding.scale_16_bit else []
        return ", ".join([*steps, f"mean {self.mean}", f"std {self.std}"])


def _object(metadata: Mapping[str, str], key: str, names: Any) -> dict[str, Any]:
    value = json.loads(metadata[key])
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise ValueError(f"{key} is {str(value)[:80]}, not an object with {', '.join(names)}")
    return value


def _numbers(metadata: Mapping[str, str], key: str) -> tuple[float, ...]:
    values = json.loads(metadata[key]) if key in metadata else None
    if not isinstance(values, list) or not values or not all(map(_is_number, values)):
        raise ValueError(f"{key} is {str(values)[:80]}, not a list of one number or one for each channel")
    return tuple(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
