"""Weights by name, from the hub or from a file -> a model, with its preprocessing and class names."""

import logging
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from flax import nnx

from parity.conversion.files import tidied
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.errors import UserError
from resnet_flax.models import ResNet, build_model, get_architecture
from resnet_flax.models.arguments import require_known
from resnet_flax.weights.adapt import adapted
from resnet_flax.weights.download import fetch_published
from resnet_flax.weights.files import Weights, read_weights
from resnet_flax.weights.hub import HUB, fetch_from_hub, hub_name
from resnet_flax.weights.metadata import Metadata
from resnet_flax.weights.pretrained import Pretrained
from resnet_flax.weights.published import PUBLISHED_WEIGHTS, PublishedWeights, imagenet_classes, published_weights

logger = logging.getLogger("resnet_flax")


def create_model(
    name: str,
    *,
    weights: str | os.PathLike | None = None,
    prefix: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> ResNet:
    """A network of the family in eval mode, random or with weights.

    Whatever is changed to fit `num_classes` or `in_channels` is logged as a warning.

    Args:
        name: one of `ARCHITECTURES`.
        weights, prefix: see `load_pretrained`; None for random ones.
        num_classes: of the head; a number other than the weights' makes a new head, 0 drops it. None keeps theirs.
        in_channels: of the images; a number other than the weights' adapts the first convolution. None keeps theirs.
        rngs: for random parameters; `nnx.Rngs(0)` by default.
        options: of `ResNet`, such as `dtype`, `norm_layer` or `zero_init_residual`; for random parameters also
            `initialization`, one of `resnet_flax.models.registry.INITIALIZATIONS`.

    Raises:
        UserError, ParityError: for an unknown name, or weights that cannot be fetched, read, or used for this network.

    Examples:
        >>> import jax, numpy as np, resnet_flax
        >>> model = resnet_flax.create_model("resnet18", num_classes=10, in_channels=1)
        >>> jax.jit(model)(np.zeros((2, 32, 32, 1), np.float32)).shape
        (2, 10)
    """
    rngs = rngs or nnx.Rngs(0)
    if weights is None:
        return build_model(name, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options)
    loaded = load_pretrained(
        name, weights, prefix=prefix, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options
    )
    for note in loaded.notes:
        logger.warning(note)
    return loaded.model


def load_pretrained(
    name: str | None,
    weights: str | os.PathLike,
    *,
    prefix: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rngs: nnx.Rngs | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Pretrained:
    """A network with weights, together with its preprocessing and class names.

    Args:
        name: the architecture; None takes that of the weights.
        weights: torchvision's name ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT" for the best), downloaded once and
            cached; "hf-hub:OWNER/REPOSITORY" for weights on the Hugging Face hub, or timm's "resnet50.a1_in1k" for
            "hf-hub:timm/resnet50.a1_in1k"; or a file or folder that `python -m parity inspect` can read.
        prefix: of the wanted network's names, in a file that holds several, such as "teacher.".
        num_classes, in_channels, rngs, options: as in `create_model`.
        class_names: of the logits, in place of those that came with the weights.

    Raises:
        UserError, ParityError: as `create_model`.

    Examples:
        >>> import parity, resnet_flax
        >>> from safetensors.numpy import save_file
        >>> model = resnet_flax.create_model("test_resnet", num_classes=2)
        >>> save_file(parity.to_torch(model), "mine.safetensors")
        >>> pretrained = resnet_flax.load_pretrained(None, "mine.safetensors", class_names=("cat", "dog"))
        >>> pretrained.architecture, pretrained.class_names
        ('test_resnet', ('cat', 'dog'))
    """
    require_known(options)
    weights = _name_of(weights, name)
    name = get_architecture(name).name if name is not None else None
    loaded, preprocessing, names, notes = _find(name, str(weights), prefix)
    loaded = loaded if name is None else loaded.named(name)
    notes += [str(note) for note in loaded.warnings(**options) if note.is_warning]
    if loaded.options:
        decided = ", ".join(f"{option}={value}" for option, value in loaded.options.items())
        logger.info("the weights of %s come with %s", weights, decided)
    rngs = rngs or nnx.Rngs(0)
    loaded, changes = adapted(loaded, num_classes, in_channels, rngs)
    names = tuple(class_names) if class_names is not None else None if "fc" in changes else names
    identity = loaded.identity
    if names is not None and len(names) != identity.num_classes:
        came = "came with it; give its own (--class-names)" if class_names is None else "are given"
        raise UserError(f"{weights} has {identity.num_classes:,} classes, but {len(names):,} class names {came}")
    if preprocessing and len(preprocessing.mean) not in (1, 3, identity.in_channels):
        raise UserError(
            f"{weights} comes with a mean of {len(preprocessing.mean)} channels for images of {identity.in_channels}"
        )
    used = (preprocessing or Preprocessing()).for_channels(identity.in_channels)
    if preprocessing is None:
        notes.append(no_preprocessing(weights))
    model = loaded.to_model(rngs, **options)
    notes += changes.values()
    return Pretrained(model, identity.architecture, str(weights), used, preprocessing is not None, names, tuple(notes))


def no_preprocessing(weights: str) -> str:
    """The note about weights with which no preprocessing came; what is assumed is in `Pretrained.preprocessing`."""
    return f"no preprocessing came with {weights}; assumed: torchvision's for ImageNet"


def _name_of(weights: str | os.PathLike | Enum, architecture: str | None) -> str:
    """The weights as a string; a member of torchvision's enums, such as ResNet50_Weights.DEFAULT, by its name.

    Raises:
        UserError: if it belongs to another network, or is not a name or path at all.
    """
    if isinstance(weights, Enum):
        theirs = type(weights).__name__.lower().removesuffix("_weights")
        if architecture is not None and theirs != architecture:
            raise UserError(f"{weights} belongs to {theirs}, not to {architecture}")
        return weights.name
    if not isinstance(weights, str | os.PathLike):
        raise UserError(f'weights= is a name such as "DEFAULT", or a file; got {weights!r}')
    return str(tidied(weights) if Path(weights).expanduser().exists() else weights)


def _find(
    name: str | None, weights: str, prefix: str | None
) -> tuple[Weights, Preprocessing | None, tuple[str, ...] | None, list[str]]:
    """The weights with their preprocessing and class names, and notes on what was assumed about these."""
    notes, preprocessing, path = [], None, Path(weights).expanduser()
    if (repository := hub_name(weights)) and not path.exists():
        path, found = fetch_from_hub(repository)
        notes += found
    elif weights == "DEFAULT" or any(weights == known for _, known in PUBLISHED_WEIGHTS):
        if name is None:
            raise UserError(f"several networks have weights called {weights}; choose one with --model")
        row = _published(name, weights)
        return fetch_published(row), row.preprocessing, imagenet_classes(), []
    else:
        preprocessing = _published_preprocessing(path, weights, name)
    loaded = read_weights(path, prefix)
    kept = Metadata(loaded.metadata)
    preprocessing, class_names = preprocessing or kept.preprocessing, kept.class_names
    classes = loaded.identity.num_classes
    if class_names is None and classes == 1000:
        class_names = imagenet_classes()
        notes.append(f"no class names came with {weights}, which has 1000 classes; assumed: ImageNet's")
    return loaded, preprocessing, class_names, notes


def _published_preprocessing(path: Path, weights: str, name: str | None) -> Preprocessing | None:
    if not path.exists():
        known = ", ".join(published_weights(name)) if name else "IMAGENET1K_V1, IMAGENET1K_V2"
        raise UserError(
            f"no weights {weights!r}: expected a file, {HUB}OWNER/REPOSITORY, {known + ' or ' if known else ''}DEFAULT"
        )
    return next((row.preprocessing for row in PUBLISHED_WEIGHTS.values() if path.name == row.file_name), None)


def _published(name: str, weights: str) -> PublishedWeights:
    rows = published_weights(name)
    if not rows:
        raise UserError(f"there are no published weights of {name}; give a file")
    if weights == "DEFAULT":
        return list(rows.values())[-1]
    if weights not in rows:
        raise UserError(f"{name} has no weights {weights}; it has {', '.join(rows)}")
    return rows[weights]
