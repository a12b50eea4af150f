"""Progressive sizes: small images in the first epochs, which cost less, and the final size in the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def stages(sizes: Sequence[int], epochs: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(size, the epoch before which it ends), from the epoch `start` on, counted from 0.

    Each size has an equal share of the epochs; where they do not divide evenly, later sizes have one more.
    """
    ends = [epochs * (index + 1) // len(sizes) for index in range(len(sizes))]
    yield from ((size, end) for size, end in zip(sizes, ends, strict=True) if end > start)


def described(sizes: Sequence[int], epochs: int) -> str:
    """The whole schedule, for people: 96 pixels in epochs 1 to 30, 128 pixels in epochs 31 to 60."""
    parts, begin = [], 1
    for size, end in stages(sizes, epochs):
        parts.append(f"{size} pixels in " + (f"epochs {begin} to {end}" if end > begin else f"epoch {end}"))
        begin = end + 1
    return ", ".join(parts)
