"""Weights by name or file -> a ready model."""

from typing import Any

from flax import nnx

from resnet_flax.models import ResNet, build_model


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> ResNet:
    """A network of the family in eval mode."""
    return build_model(name, num_classes=num_classes, in_channels=in_channels, rngs=rngs or nnx.Rngs(0), **options)
