"""Resizing with another kernel, other corners, or without a low-pass filter."""

from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.alterations import Variants, alters, arguments
from parity.diagnosis.program import Call, Replacement

_LINEAR = ("bilinear", "bicubic")
_KINDS: dict[str, dict[str, Any]] = {
    "nearest, rounded down": {"mode": "nearest"},
    "nearest at pixel centres (jax.image.resize)": {"mode": "nearest-exact"},
    "area": {"mode": "area"},
    **{
        f"{mode} with align_corners={corners}": {"mode": mode, "align_corners": corners}
        for mode in _LINEAR
        for corners in (False, True)
    },
    **{f"{mode} with antialiasing": {"mode": mode, "align_corners": False, "antialias": True} for mode in _LINEAR},
}


@alters("interpolate")
def resize(call: Call) -> Variants:
    settings = arguments(call)
    theirs, size = _spelt(settings), tuple(call.output.shape[2:])
    if call.args[0].ndim == 4:
        for words, options in _KINDS.items():
            if words != theirs:
                yield f"resizing is {words}, PyTorch's is {theirs}", _resized(options, size)
    if call.args[0].ndim == 3 and settings.get("mode") == "linear":
        corners = bool(settings.get("align_corners"))
        yield (
            f"resizing is linear with align_corners={not corners}, PyTorch's with align_corners={corners}",
            _resized({"mode": "linear", "align_corners": not corners}, size),
        )


def _spelt(settings: dict[str, Any]) -> str:
    mode = settings.get("mode", "nearest")
    if settings.get("antialias"):
        return f"{mode} with antialiasing"
    if mode in _LINEAR:
        return f"{mode} with align_corners={bool(settings.get('align_corners'))}"
    names = {"nearest": "nearest, rounded down", "nearest-exact": "nearest at pixel centres (jax.image.resize)"}
    return names.get(mode, mode)


def _resized(options: dict[str, Any], size: tuple[int, ...]) -> Replacement:
    def replaced(call: Call, _: Any) -> torch.Tensor:
        return F.interpolate(call.args[0], size=size, **options)

    return replaced


@alters("pixel_shuffle", "pixel_unshuffle")
def shuffle(call: Call) -> Variants:
    factor = call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
    if call.name == "pixel_shuffle":
        yield (
            f"the pixel shuffle takes channels as (h, w, C), PyTorch as (C, h, w), with h = w = {factor}",
            lambda call, _: F.pixel_shuffle(
                call.args[0].unflatten(1, (factor * factor, -1)).transpose(1, 2).flatten(1, 2), factor
            ),
        )
