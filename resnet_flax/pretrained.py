"""Named weights, a hub repository or a file -> a ready model, with what one needs to use it."""

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from parity.convert import to_torch
from resnet_flax.cache import cache_directory
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.hub import fetch_from_hub
from resnet_flax.layers import Linear
from resnet_flax.models import ARCHITECTURES, ResNet, build_model, get_architecture
from resnet_flax.weight_table import PUBLISHED_WEIGHTS, PublishedWeights, imagenet_classes, published_weights
from resnet_flax.weights import ARCHITECTURE, Weights, read_weights, write_weights

logger = logging.getLogger("resnet_flax")
HUB = "hf-hub:"


@dataclass(frozen=True)
class Pretrained:
    """A model with weights, in eval mode, and what belongs to them.

    Attributes:
        model: the network.
        architecture: its name in the table of architectures.
        source: where the weights came from.
        preprocessing: what images have to go through.
        says_preprocessing: whether the weights say so themselves; else ImageNet's is assumed.
        class_names: of the logits; None where they are not known, or the head is new.
        notes: what was assumed or changed on the way, one sentence each.
    """

    model: ResNet
    architecture: str
    source: str
    preprocessing: Preprocessing
    says_preprocessing: bool
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def metadata_of(architecture: str, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> dict[str, str]:
    """What one needs to use weights, as the text that is kept beside them."""
    names = {"class_names": json.dumps(list(class_names))} if class_names else {}
    return {ARCHITECTURE: architecture, **preprocessing.to_metadata(), **names}


def create_model(
    name: str,
    *,
    weights: str | os.PathLike | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> ResNet:
    """A network of the family in eval mode, random or with weights.

    What is changed on the way to fit `num_classes` or `in_channels` is logged as a warning.

    Args:
        name: one of `ARCHITECTURES`.
        weights: see `load_pretrained`; None for random ones.
        num_classes: of the head; another number than the weights' makes a new head, 0 drops it. None keeps theirs.
        in_channels: of the images; another number than the weights' adapts the first convolution. None keeps theirs.
        rngs: for random parameters; `nnx.Rngs(0)` by default.
        options: of `ResNet`, such as `dtype`, `norm_layer` or `zero_init_residual`.

    Raises:
        UserError, ParityError: an unknown name, or weights that cannot be had, read, or used for this network.
    """
    rngs = rngs or nnx.Rngs(0)
    if weights is None:
        return build_model(name, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options)
    loaded = load_pretrained(name, weights, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options)
    for note in loaded.notes:
        logger.warning(note)
    return loaded.model


def load_pretrained(
    name: str | None,
    weights: str | os.PathLike,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> Pretrained:
    """A network with weights, together with its preprocessing and class names.

    Args:
        name: the architecture; None takes the one that the weights are of.
        weights: torchvision's name ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT" for the best), downloaded once and
            cached; "hf-hub:OWNER/REPOSITORY" for a model.safetensors on the Hugging Face hub; or a file that
            `python -m parity inspect` understands.
        num_classes, in_channels, rngs, options: as in `create_model`.
    """
    row = get_architecture(name) if name is not None else None
    found, preprocessing, class_names, notes = _find(name, str(weights))
    theirs = ARCHITECTURES[found.identity.architecture]
    if row is None:
        row = theirs
    elif not row.has_shapes_of(theirs):
        raise UserError(f"{weights} holds a {theirs.name}, not a {row.name}")

    rngs = rngs or nnx.Rngs(0)
    found, changes = _adapt(found, num_classes, in_channels, rngs)
    if "fc" in changes:
        class_names = None
    identity = replace(found.identity, architecture=row.name)
    prepared = (preprocessing or Preprocessing()).for_channels(identity.in_channels)
    if preprocessing is None:
        notes.append(f"{weights} does not say how its images were prepared; assumed: {prepared}")
    model = replace(found, identity=identity).to_model(rngs, **options)
    notes += changes.values()
    return Pretrained(model, row.name, str(weights), prepared, preprocessing is not None, class_names, tuple(notes))


def _find(name: str | None, weights: str) -> tuple[Weights, Preprocessing | None, tuple[str, ...] | None, list[str]]:
    """The weights with their preprocessing, class names, and what was assumed about either."""
    if weights.startswith(HUB):
        path, preprocessing, class_names = fetch_from_hub(weights.removeprefix(HUB))
    elif weights == "DEFAULT" or any(weights == known for _, known in PUBLISHED_WEIGHTS):
        if name is None:
            raise UserError(f"{weights} names the weights of several networks; say which one with --model")
        row = _published(name, weights)
        return _fetch_published(row), row.preprocessing, imagenet_classes(), []
    else:
        path, preprocessing, class_names = _local(weights, name)
    found = read_weights(path)
    notes = [note for note in found.notes if note.startswith("warning")]
    preprocessing = preprocessing or Preprocessing.from_metadata(found.metadata)
    if class_names is None and "class_names" in found.metadata:
        class_names = tuple(json.loads(found.metadata["class_names"]))
    if class_names is None and found.identity.num_classes == 1000:
        class_names = imagenet_classes()
        notes.append(f"{weights} does not name its 1000 classes; assumed: ImageNet's")
    return found, preprocessing, class_names, notes


def _local(weights: str, name: str | None) -> tuple[Path, Preprocessing | None, None]:
    path = Path(weights).expanduser()
    if not path.exists():
        known = ", ".join(published_weights(name)) if name else "IMAGENET1K_V1, IMAGENET1K_V2"
        raise UserError(
            f"no weights {weights!r}: neither a file, nor {HUB}OWNER/REPOSITORY, nor one of {known or 'none'}, DEFAULT"
        )
    for row in PUBLISHED_WEIGHTS.values():
        if path.name == row.file_name:
            return path, row.preprocessing, None
    return path, None, None


def _published(name: str, weights: str) -> PublishedWeights:
    rows = published_weights(name)
    if not rows:
        raise UserError(f"there are no published weights of {name}; give a file")
    if weights == "DEFAULT":
        return list(rows.values())[-1]
    if weights not in rows:
        raise UserError(f"{name} has no weights {weights}; it has {', '.join(rows)}")
    return rows[weights]


def _fetch_published(row: PublishedWeights) -> Weights:
    """From the cache, or a file that someone put there, or torchvision's server; then converted and cached."""
    folder = cache_directory("weights")
    cached = (folder / row.file_name).with_suffix(".safetensors")
    if cached.exists():
        return read_weights(cached)
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    placed = [folder / row.file_name, torch_home / "hub" / "checkpoints" / row.file_name]
    source = next((path for path in placed if path.exists()), None)
    if source and not _sha256(source).startswith(row.hash):
        raise UserError(f"{source} is damaged: its SHA-256 does not begin with {row.hash}; remove it and try again")
    with tempfile.TemporaryDirectory(dir=folder) as own:  # other processes may be at the same
        weights = read_weights(source or _download(row, Path(own), place=placed[0]))
        write_weights(cached, weights.to_model(), replace(weights, metadata=row.preprocessing.to_metadata()))
    return read_weights(cached)


def _download(row: PublishedWeights, folder: Path, *, place: Path) -> Path:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{row.url} is a PyTorch file, which takes PyTorch to read once: pip install 'resnet-flax[torch]', "
            f"or use {HUB}timm/{row.architecture}.tv_in1k"
        ) from error
    path = folder / row.file_name
    try:
        torch.hub.download_url_to_file(row.url, str(path), hash_prefix=row.hash)
    except OSError as error:
        raise UserError(f"cannot download {row.url} ({error}): fetch it elsewhere and put it at {place}") from error
    except RuntimeError as error:  # the hash
        raise UserError(f"{row.url} arrived damaged ({error}): try again") from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _adapt(
    weights: Weights, num_classes: int | None, in_channels: int | None, rngs: nnx.Rngs
) -> tuple[Weights, dict[str, str]]:
    """The weights of a network with another head or stem, and what was done: {module: one sentence}."""
    identity, state_dict, changes = weights.identity, dict(weights.state_dict), {}
    if num_classes is not None and num_classes != identity.num_classes:
        state_dict = {name: array for name, array in state_dict.items() if not name.startswith("fc.")}
        if num_classes:
            features = next(
                array.shape[0]
                for name, array in reversed(state_dict.items())
                if name.startswith("layer4.") and array.ndim == 1
            )
            head = to_torch(nnx.List([Linear(features, num_classes, rngs=rngs)]))
            state_dict |= {name.replace("0.", "fc."): array for name, array in head.items()}
        changes["fc"] = (
            f"the head is new: {num_classes} classes instead of {identity.num_classes}, not trained yet"
            if num_classes
            else "the head was dropped"
        )
    if in_channels is not None and in_channels != identity.in_channels:
        state_dict["conv1.weight"] = adapt_stem(state_dict["conv1.weight"], in_channels)
        changes["conv1"] = f"the first convolution was adapted from {identity.in_channels} to {in_channels} channels"
    sizes = {
        "num_classes": identity.num_classes if num_classes is None else num_classes,
        "in_channels": identity.in_channels if in_channels is None else in_channels,
    }
    return replace(weights, state_dict=state_dict, identity=replace(identity, **sizes)), changes


def adapt_stem(weight: np.ndarray, in_channels: int) -> np.ndarray:
    """The first convolution's weight (O, I, h, w) for another number of input channels, as timm adapts it.

    To one channel the old ones are summed, so that a grey image gives what its copy in every channel gave. To more they
    are repeated in turn and scaled by I / in_channels, which keeps the size of the output.
    """
    if in_channels == 1:
        return weight.sum(1, keepdims=True)
    old = weight.shape[1]
    repeated = np.tile(weight, (1, math.ceil(in_channels / old), 1, 1))[:, :in_channels]
    return (repeated * (old / in_channels)).astype(weight.dtype)
