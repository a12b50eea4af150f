"""The config.json that timm and transformers read beside weights; `resnet_flax.weights.config` is its reader here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet, get_architecture
from resnet_flax.weights.arithmetic import arithmetic_of

_MODEL_ARGS = {"activation": "act_layer", "output_stride": "output_stride", "global_pool": "global_pool"}
_MODEL_ARGS |= {"aa_layer": "aa_layer"}
"""{what arithmetic is called here: the argument of timm's ResNet}."""


@dataclass(frozen=True)
class TimmConfig:
    """A config.json, and what it cannot hold.

    Attributes:
        content: the JSON object, as timm 1.0 writes it (`timm.models.save_config_for_hf`).
        is_loaded_by_timm: whether timm and transformers have such a network.
        notes: one sentence for each thing that they lack or do otherwise.
    """

    content: dict[str, Any]
    is_loaded_by_timm: bool
    notes: tuple[str, ...]


def timm_config(
    model: ResNet,
    architecture: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
    license_name: str,
) -> TimmConfig:
    """The config.json for a model of an architecture, with the licence by the hub's identifier.

    Raises:
        UserError: where timm would load the weights and compute something else with them.
    """
    row, notes = get_architecture(architecture), []
    arguments: dict[str, Any] = {}
    for option, value in arithmetic_of(model, row.name).items():
        if option not in _MODEL_ARGS:
            raise UserError(
                f"the weights need {option}={value!r}, for which timm's config.json has no field: it would load them "
                "and compute something else; `python -m resnet_flax export` keeps it in a .safetensors file"
            )
        arguments[_MODEL_ARGS[option]] = value
    if not row.is_in_timm:
        notes.append(f"timm has no {row.name}: only resnet_flax can load it from there")
    elif model.small_images:
        notes.append(f"timm's {row.name} has no stem for small images: only resnet_flax can load it from there")
    if model.in_channels != 3:
        arguments["in_chans"] = model.in_channels
    content: dict[str, Any] = {
        "architecture": row.name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
    }
    if arguments:
        content["model_args"] = arguments
    fields, others = _preprocessing(preprocessing, model.in_channels, row.image_size)
    stem = "conv1.0" if model.stem.hidden else "conv1"
    content["pretrained_cfg"] = fields | {
        "num_classes": model.num_classes,
        "first_conv": stem,
        "classifier": "fc",
        "license": license_name,
    }
    if class_names:
        content["label_names"] = list(class_names)
    return TimmConfig(content, row.is_in_timm and not model.small_images, (*notes, *others))


def _preprocessing(preprocessing: Preprocessing, channels: int, image_size: int) -> tuple[dict[str, Any], list[str]]:
    transform, notes = preprocessing.transform, []
    crop = transform.crop_size or transform.resize_size or image_size
    resize = transform.resize_size or crop
    if transform.crop_size is None or transform.resize_size is None:
        notes.append(
            f"timm's preprocessing always resizes and crops, which these weights' does not ({preprocessing}); from "
            f"there images are resized to {resize} and cropped to {crop} (--resize and --crop set it)"
        )
    if crop > resize:
        raise UserError(
            f"the preprocessing crops {crop} pixels of images that are resized to {resize}, for which timm's "
            "config.json has no field; set it with --resize and --crop"
        )
    for name in ("exif_orientation", "scale_16_bit"):
        if getattr(preprocessing.decoding, name):
            notes.append(f"timm's preprocessing has no {name}; only resnet_flax applies it")
    per_channel = preprocessing.for_channels(channels)
    mean, std = (values * channels if len(values) == 1 else values for values in (per_channel.mean, per_channel.std))
    fields = {
        "input_size": [channels, crop, crop],
        "fixed_input_size": False,
        "interpolation": transform.interpolation,
        "crop_pct": _crop_pct(crop, resize),
        "crop_mode": "center",
        "mean": list(mean),
        "std": list(std),
    }
    return fields, notes


def _crop_pct(crop: int, resize: int) -> float:
    """The share of which timm makes `resize` again, as floor(crop / share)."""
    share = crop / resize
    return share if math.floor(crop / share) == resize else crop / (resize + 0.5)
