"""Pillow's resize up to rounding, in a third of its time: by cykooz-resizer, with SIMD instructions.

Off by default, because pixels are no longer torchvision's; benchmarks/fast_resize.py measures how far they are off.
"""

from __future__ import annotations

import threading
from typing import Any, Literal

from PIL import Image

from parity.errors import needs_extra

Resize = Literal["exact", "fast"]
"""By Pillow, as torchvision does it, or by cykooz-resizer."""
FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom"}
"""{interpolation: the same kernel under cykooz-resizer's name}; "nearest" computes nothing that could be faster."""

_of_thread = threading.local()


def require_fast_resize() -> None:
    """Raises MissingPackageError where cykooz-resizer is not installed."""
    with needs_extra("fast", "--resize fast"):
        import cykooz_resizer  # noqa: F401


def fast_resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """An L or RGB image resized to (width, height).

    Args:
        interpolation: one of `FILTERS`.

    Raises:
        MissingPackageError: if cykooz-resizer is not installed.
    """
    resizer, options = _tools()
    target = Image.new(image.mode, size)
    resizer.resize_pil(image, target, options[interpolation])
    return target


def _tools() -> tuple[Any, dict[str, Any]]:
    """The thread's own resizer, which keeps buffers between calls, and its options by interpolation."""
    if not hasattr(_of_thread, "tools"):
        with needs_extra("fast", "--resize fast"):
            from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
        algorithms = {name: ResizeAlg.convolution(FilterType[kernel]) for name, kernel in FILTERS.items()}
        _of_thread.tools = (
            Resizer(),
            {name: ResizeOptions(resize_alg=algorithm, use_alpha=False) for name, algorithm in algorithms.items()},
        )
    return _of_thread.tools
