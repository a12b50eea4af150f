"""The ResNets as a family that `python -m parity` knows: its names, pairs and checkpoints.

Registered in pyproject.toml under the entry-point group `parity.networks`; `parity.networks.Family` says what is asked.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.conversion.checkpoints import Checkpoint
from parity.conversion.convert import as_numpy
from parity.errors import needs_extra
from resnet_flax.errors import UserError
from resnet_flax.layers import Conv
from resnet_flax.models import ARCHITECTURES, ResNet, get_architecture
from resnet_flax.models.options import ModelOptions
from resnet_flax.models.registry import ALIASES
from resnet_flax.weights.arithmetic import alternatives, model_options
from resnet_flax.weights.files import Weights, from_checkpoint, read_weights, write_weights
from resnet_flax.weights.identify import Identity, identify
from resnet_flax.weights.metadata import Metadata
from resnet_flax.weights.use import Use


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What else can be chosen about a network."""

    small_images: bool = False
    """A 3x3 stem without max-pool on both sides."""


@dataclass(frozen=True)
class ResNetPair:
    """A ResNet and its PyTorch original, with the same values; see `parity.networks.NamedPair`."""

    flax_model: nnx.Module
    torch_model: Any
    channels: int
    num_classes: int

    @property
    def train(self) -> Callable:
        from resnet_flax.training.trajectory import train

        return train

    def batches(self, steps: int, batch: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Digits, of which there are ten.

        Raises:
            UserError: if the network has fewer classes.
        """
        if self.num_classes < 10:
            raise UserError(f"a trajectory trains on ten digits, and the weights have {self.num_classes} classes")
        from resnet_flax.training.trajectory import digit_batches

        return digit_batches(steps, batch, size, self.channels)

    def read_image(self, path: Path, batch: int, size: int) -> np.ndarray:
        """One picture, resized a little differently for each example of the batch, and normalised."""
        from resnet_flax.data.decoding import CorruptImage, decode_grey, decode_rgb
        from resnet_flax.data.folder import read_image
        from resnet_flax.data.on_device import IMAGENET_MEAN, IMAGENET_STD
        from resnet_flax.data.transforms import evaluation_transform

        try:
            picture = (decode_rgb if self.channels == 3 else decode_grey)(read_image(path), str(path))
        except CorruptImage as error:
            raise UserError(f"--image {path} cannot be read: {error.reason}") from error
        crops = [
            evaluation_transform(resize_size=size + size * index // 8, crop_size=size)(picture)
            for index in range(1, batch + 1)
        ]
        pixels = np.stack(crops).reshape(batch, size, size, self.channels) / np.float32(255)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.channels == 3 else ((0.5,), (0.5,))
        return ((pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).astype(np.float32)


@dataclass(frozen=True)
class IdentifiedWeights:
    """A checkpoint of the family; see `parity.networks.Weights`."""

    weights: Weights

    @property
    def origin(self) -> Mapping[str, str]:
        return self.weights.origin

    @property
    def notes(self) -> tuple[Any, ...]:
        return self.weights.warnings()

    @property
    def in_channels(self) -> int:
        return self.weights.identity.in_channels

    @property
    def image_size(self) -> int:
        identity = self.weights.identity
        kept = Metadata(self.weights.metadata).preprocessing
        if kept and kept.transform.crop_size:
            return kept.transform.crop_size
        return 32 if identity.small_images else get_architecture(identity.architecture).image_size

    @property
    def decided(self) -> Mapping[str, Any]:
        return self.weights.options

    def alternatives(self) -> Mapping[str, tuple[Any, ...]]:
        return alternatives(self.weights.identity.architecture)

    @cached_property
    def _model(self) -> ResNet:
        """Raises unless every entry fits."""
        with jax.enable_x64(True):  # float64 weights stay so
            return self.weights.to_model()

    @cached_property
    def _states(self) -> list[Any]:
        """Of each link, in float32, which the images have."""

        def narrowed(array: jax.Array) -> jax.Array:
            wide = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype != jnp.float32
            return jnp.asarray(np.asarray(array, np.float32)) if wide else array

        return [jax.tree.map(narrowed, nnx.state(module)) for _, module in self._model.links()]

    def links(self, options: Mapping[str, Any]) -> list[tuple[str, nnx.Module]]:
        unset = partial(Conv, kernel_init=lambda key, shape, dtype: np.zeros(shape, dtype))  # takes no time
        plan = self.weights.identity.build(
            nnx.Rngs(0), **{"conv_layer": unset, "num_classes": 0, **model_options(options, {})}
        )
        links = plan.links()
        for (_, module), state in zip(links, self._states, strict=True):
            nnx.update(module, state)
        return links

    def describe(self) -> str:
        return str(self.weights.identity)

    def rows(self) -> list[tuple[str, str]]:
        weights, identity = self.weights, self.weights.identity
        stem = self._stem()  # raises unless every entry fits
        parameters = sum(a.size for n, a in weights.state_dict.items() if n.endswith((".weight", ".bias")))
        dtypes = Counter(array.dtype.name for array in weights.state_dict.values())
        layout, before = weights.layout
        prefix = f", prefix {before!r}" if before else ""
        arithmetic = ", ".join(f"{option} {value}" for option, value in weights.options.items())
        return [
            ("architecture", identity.architecture),
            ("classes", str(identity.num_classes) if identity.num_classes else "none (no head)"),
            ("input channels", f"{identity.in_channels}"),
            ("stem", stem),
            ("parameters", f"{parameters:,}"),
            ("entries", ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items())),
            ("names", f"{layout.name}{prefix}"),
            *([("arithmetic", arithmetic)] if arithmetic else []),
            *((key, text if len(text) <= 60 else text[:57] + "...") for key, text in weights.metadata.items()),
        ]

    def _stem(self) -> str:
        stem = self._model.stem
        sizes = ", ".join([f"{stem.kernel_size}x{stem.kernel_size}"] * (1 + len(stem.hidden)))
        if not stem.has_pool:
            return f"{sizes}, no max-pool"
        pool = f"{stem.aa_layer} pool" if stem.aa_layer else "max-pool"
        return f"{sizes} stride {stem.stride}, {'3x3 convolution' if stem.replace_stem_pool else pool}"

    def named(self, name: str) -> "IdentifiedWeights":
        return IdentifiedWeights(self.weights.named(name))

    def used(self, **given: Any) -> "IdentifiedWeights":
        return IdentifiedWeights(Use(**given).kept_with(self.weights))

    def write(self, path: Path, *, original_names: bool) -> None:
        write_weights(path, self._model, self.weights, original_names=original_names)


class ResNets:
    """The family; see `parity.networks.Family`."""

    Options = Options
    Use = Use

    def names(self) -> list[str]:
        return [*ARCHITECTURES, *ALIASES]

    def identify(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        return str(identify(shapes))

    def read(self, source: Path | Mapping[str, Any], prefix: str | None = None) -> IdentifiedWeights:
        if not isinstance(source, Mapping):
            return IdentifiedWeights(read_weights(source, prefix))
        checkpoint = Checkpoint({name: as_numpy(tensor) for name, tensor in source.items()})
        return IdentifiedWeights(from_checkpoint(checkpoint, Path("/the state_dict/entries"), prefix))

    def pair(self, name: str, options: Options, *, weights: Path | None = None) -> ResNetPair:
        """A network in Flax and in PyTorch, with a checkpoint's weights; without one the Flax model is abstract.

        Raises:
            UserError: if the weights are of another network, or have no head.
        """
        row = get_architecture(name)
        if weights is None:
            identity = Identity(row.name, row.num_classes, row.in_channels, options.small_images)
            model = identity.build_abstract(**options.arguments())
            original = _original(name, row.num_classes, row.in_channels, options.small_images, options)
            return ResNetPair(model, original, row.in_channels, row.num_classes)

        with jax.enable_x64(True):  # float64 weights stay so
            read = read_weights(weights).named(name)
            options = _completed(options, read, name)
            model = read.to_model(**options.arguments())
        identity = read.identity
        if not identity.num_classes:
            raise UserError(f"{weights} has no head, and PyTorch's {name} has one: nothing to compare")
        original = _original(name, identity.num_classes, identity.in_channels, identity.small_images, options)
        _fill(original, read.state_dict)
        return ResNetPair(model, original, identity.in_channels, identity.num_classes)


def _completed(options: Options, weights: Weights, name: str) -> Options:
    """The options with those that the weights need, where they are open.

    Raises:
        UserError: if the weights need what PyTorch's network lacks.
    """
    known = {field.name for field in fields(ModelOptions)}
    if lacking := {option: value for option, value in weights.options.items() if option not in known}:
        needed = ", ".join(f"{option}={value}" for option, value in lacking.items())
        raise UserError(f"{weights.source} needs {needed}, which PyTorch's {name} lacks; compare them in Python")
    return replace(options, **{**weights.options, **options.arguments()})


def _original(name: str, num_classes: int, in_channels: int, small_images: bool, options: ModelOptions) -> Any:
    with needs_extra("torch", f"PyTorch's {name}"):
        from resnet_flax.models.originals import torch_network
    return torch_network(
        name, num_classes=num_classes, in_channels=in_channels, small_images=small_images, options=options
    )


def _fill(original: Any, state_dict: Mapping[str, np.ndarray]) -> None:
    import torch

    original.load_state_dict({key: torch.tensor(np.array(value)) for key, value in state_dict.items()})


FAMILY = ResNets()
