"""Weights from the Hugging Face hub: timm's and transformers' ResNets, as .safetensors."""

import json
import math
from pathlib import Path
from typing import Any

from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.transforms import EvaluationTransform
from resnet_flax.errors import UserError

HUB = "hf-hub:"


def fetch_from_hub(repository: str) -> tuple[Path, Preprocessing | None, tuple[str, ...] | None]:
    """The path of a repository's model.safetensors in the local cache, its preprocessing, and its class names.

    Downloads what is not cached yet; huggingface_hub's environment variables, such as `HF_HOME` and `HF_HUB_OFFLINE`,
    apply.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises:
        UserError: if there is no such file, or it cannot be reached.
    """
    weights = _fetch(repository, "model.safetensors")
    config = _fetch_json(repository, "config.json")
    if "pretrained_cfg" in config:
        return weights, _from_timm(config["pretrained_cfg"]), None
    names = config.get("id2label")
    class_names = tuple(names[key] for key in sorted(names, key=int)) if names else None
    return weights, _from_transformers(_fetch_json(repository, "preprocessor_config.json")), class_names


def _fetch(repository: str, file_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, file_name, revision=revision or None))
    except (EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot get {file_name} of hf-hub:{repository} ({reason}); "
            "if this machine is offline, download the file elsewhere and give its path"
        ) from error


def _fetch_json(repository: str, file_name: str) -> dict[str, Any]:
    try:
        return json.loads(_fetch(repository, file_name).read_text())
    except UserError:
        return {}  # weights are usable without it; what is assumed instead becomes a note


def _from_timm(config: dict[str, Any]) -> Preprocessing:
    crop = config["input_size"][-1]
    resize = math.floor(crop / config["crop_pct"])  # timm.data.transforms_factory.transforms_imagenet_eval
    transform = EvaluationTransform(resize, crop, config["interpolation"])
    return Preprocessing(transform, tuple(config["mean"]), tuple(config["std"]))


def _from_transformers(config: dict[str, Any]) -> Preprocessing | None:
    if "image_mean" not in config:
        return None
    size = config["size"]
    crop = size["shortest_edge"] if isinstance(size, dict) else size
    resize = int(crop / config.get("crop_pct", 0.875))  # ConvNextImageProcessor, which transformers' ResNets use
    transform = EvaluationTransform(resize, crop, "bilinear" if config.get("resample") == 2 else "bicubic")
    return Preprocessing(transform, tuple(config["image_mean"]), tuple(config["image_std"]))
