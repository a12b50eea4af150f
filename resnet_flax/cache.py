"""The directory of downloaded weights and compiled programs."""

import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """`$RESNET_FLAX_CACHE`, or resnet_flax under `$XDG_CACHE_HOME`, or `~/.cache/resnet_flax`; created if missing."""
    base = os.environ.get("RESNET_FLAX_CACHE")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_flax"
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
