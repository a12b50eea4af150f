"""Figures of a source: counts, sizes, channel statistics; and a contact sheet of its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from parity.errors import printable
from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.transforms import to_pil
from resnet_flax.figures import new_figure, save
from resnet_flax.figures import shown as shown_names

if TYPE_CHECKING:
    from pathlib import Path

    from resnet_flax.data.source import Source


@dataclass(frozen=True)
class Description:
    """Figures of a source.

    Attributes:
        counts: {class name: images}, over all images.
        looked_at: images decoded; the other figures are over these.
        smallest, largest: (height, width), each the extreme on its own.
        mean, std: per channel, of pixels scaled to [0, 1].
        damaged: one message per image that cannot be decoded.
    """

    counts: dict[str, int]
    looked_at: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    damaged: tuple[str, ...]


def describe(source: Source, *, limit: int, on_sample: Callable[[], None] = lambda: None) -> Description:
    """Counts all labels, and decodes `limit` images spread evenly over the source (all of them if it has fewer)."""
    counts = np.bincount(source.labels, minlength=source.num_classes)
    pixels, total, squares = 0, np.zeros(source.channels), np.zeros(source.channels)
    sizes, damaged = [], []
    for index in evenly(len(source), limit):
        try:
            image = source[int(index)]["image"]
        except CorruptImage as error:
            damaged.append(str(error))
        else:
            values = image.reshape(-1, source.channels) / 255
            pixels += len(values)
            total += values.sum(0)
            squares += np.square(values).sum(0)
            sizes.append(image.shape[:2])
        on_sample()
    mean = total / max(pixels, 1)
    std = np.sqrt(np.maximum(squares / max(pixels, 1) - mean**2, 0))
    heights, widths = np.array(sizes or [(0, 0)]).T
    return Description(
        counts=dict(zip(source.class_names, counts.tolist(), strict=True)),
        looked_at=len(sizes),
        smallest=(int(heights.min()), int(widths.min())),
        largest=(int(heights.max()), int(widths.max())),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        damaged=tuple(damaged),
    )


def evenly(length: int, limit: int) -> np.ndarray:
    """At most `limit` indices spread evenly over a sequence of `length`."""
    return np.linspace(0, length - 1, min(limit, length)).astype(np.int64)


def contact_sheet(source: Source, path: Path, *, rows: int = 12, columns: int = 10) -> str | None:
    """Writes a PNG with one row of images per class, labelled with its name and count, for the first `rows` classes.

    Returns a note if no font has the names of the classes.
    """
    labels = source.labels
    shown = [label for label in range(source.num_classes) if (labels == label).any()][:rows]
    names = shown_names([source.class_names[label] for label in shown])
    figure = new_figure((1.6 + columns, len(shown)))
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for label, name, axes in zip(shown, names.texts, grid, strict=True):
        members = np.flatnonzero(labels == label)
        chosen = iter(members[evenly(len(members), columns)])
        for axis in axes:
            axis.set(xticks=[], yticks=[], frame_on=False)
            index = next(chosen, None)
            if index is not None:
                try:
                    axis.imshow(to_pil(source[int(index)]["image"]).convert("RGB"))
                except CorruptImage:
                    axis.text(0.5, 0.5, "damaged", ha="center", va="center", transform=axis.transAxes)
        axes[0].set_ylabel(f"{name}\n{len(members):,}", rotation=0, ha="right", va="center", **names.style)
    more = source.num_classes > len(shown)
    title = printable(f"{source.spec} {source.split}") + (f", first {len(shown)} classes" if more else "")
    figure.suptitle(title, parse_math=False)
    save(figure, path, dpi=100)
    return names.note
