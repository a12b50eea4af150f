"""Whether to fold a 1x1 convolution into the norm after it (`layers.conv_norm`), by the time model.

For r pixels, k channels in and c out, in bfloat16, folding takes kernels away from a training step and adds others. It
pays where c is much larger than k, and on cards whose arithmetic is fast for their memory. Both sides are ranges: the
answer is "gains" or "loses" only if it is that at every combination of their ends, and otherwise "open": only a
measurement on the card settles it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from resnet_flax.compiled.cards import CARDS, Card
from resnet_flax.compiled.step_time import duration
from resnet_flax.layers import BatchNorm
from resnet_flax.models import build_model, get_architecture

Choice = Literal["always", "auto", "never"]
Verdict = Literal["gains", "loses", "open"]
Layer = tuple[int, int, int]  # pixels of the output on one device, channels in, channels out


def seconds_saved(card: Card, layer: Layer) -> tuple[float, float]:
    """The least and the most that folding saves in a step; negative where it costs time.

    The kernels are those by which a ResNet-50 compiled with and without folding differs (H100, jax 0.10.2): by these
    formulas folding saves 47.1 MB an image there, by the programs 46.8.
    """
    pixels, k, c = layer
    wide, narrow = 2 * pixels * c, 2 * pixels * k  # bytes of the output and the input
    taken = [
        duration("reduction", wide, 0, card),  # the output's statistics
        duration("reduction", 2 * wide, 0, card),  # backward: the sums of g and of g times the output
        duration("elementwise", 3 * wide, 0, card),  # the gradient of the convolution's output
    ]
    added = [
        duration("reduction", narrow, 0, card),  # the input's sum
        duration("pixel product", narrow, 2 * pixels * k * k, card),  # its second moments
        duration("reduction", wide, 0, card),  # backward: the sum of g
        duration("product", 2 * narrow, 2 * pixels * k * k, card),  # the gradient of the moments
        duration("elementwise", 4 * narrow, 0, card),  # added to that of the input
        *[duration("elementwise", 0, 0, card)] * 5,  # on arrays of the kernel's size
    ]
    slow_taken, fast_taken = (sum(seconds[i] for seconds, _ in taken) for i in (0, 1))
    slow_added, fast_added = (sum(seconds[i] for seconds, _ in added) for i in (0, 1))
    return fast_taken - slow_added, slow_taken - fast_added


def verdict(card: Card, layer: Layer) -> Verdict:
    least, most = seconds_saved(card, layer)
    return "gains" if least > 0 else "loses" if most < 0 else "open"


@dataclass(frozen=True)
class Fold:
    """The rule that `BatchNorm` asks: "always" folds, "never" does not, "auto" folds unless it loses on the card.

    Args:
        card: a key of `CARDS`; "" for a device that is none of them, on which "auto" folds.
    """

    choice: Choice = "always"
    card: str = ""

    def __call__(self, pixels: int, in_features: int, out_features: int) -> bool:
        if self.choice != "auto" or not self.card:
            return self.choice != "never"
        return verdict(CARDS[self.card], (pixels, in_features, out_features)) != "loses"


def known_card(device_kind: str) -> str:
    """The key of the card that a device is; "" if it is none of `CARDS`."""
    return next((key for key, card in CARDS.items() if card.name == device_kind), "")


def foldable_layers(model: str, images: int, size: int) -> Counter[Layer]:
    """How many layers of each shape could be folded in a network that is given `images` of `size` x `size` pixels."""
    found: Counter[Layer] = Counter()

    def record(*layer: int) -> bool:
        found[layer] += 1  # ty: ignore[invalid-argument-type]
        return True

    def forward(x: jax.Array) -> jax.Array:
        norm = partial(BatchNorm, fold=record)
        network = build_model(model, norm_layer=norm, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        network.train()
        return network(x)

    channels = get_architecture(model).in_channels
    jax.eval_shape(forward, jax.ShapeDtypeStruct((images, size, size, channels), jnp.bfloat16))
    return found
