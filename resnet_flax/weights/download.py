"""torchvision's published weights: from the cache, from a file placed there by hand, or from torchvision's server."""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from parity.errors import needs_extra
from resnet_flax.cache import cache_directory
from resnet_flax.errors import UserError
from resnet_flax.weights.files import Weights, read_weights, write_weights
from resnet_flax.weights.hub import HUB
from resnet_flax.weights.published import PublishedWeights


def fetch_published(row: PublishedWeights) -> Weights:
    """The weights, converted and cached on first use.

    Raises:
        UserError: if they cannot be downloaded, or do not have the published hash.
    """
    folder = cache_directory("weights")
    cached = (folder / row.file_name).with_suffix(".safetensors")
    if cached.exists():
        return read_weights(cached)
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    placed = [folder / row.file_name, torch_home / "hub" / "checkpoints" / row.file_name]
    source = next((path for path in placed if path.exists()), None)
    if source and not _sha256(source).startswith(row.hash):
        raise UserError(f"{source} is damaged: its SHA-256 does not begin with {row.hash}; remove it and try again")
    with tempfile.TemporaryDirectory(dir=folder) as own:  # other processes may be doing the same
        weights = read_weights(source or _download(row, Path(own), place=placed[0]))
        write_weights(cached, weights.to_model(), replace(weights, metadata=row.preprocessing.to_metadata()))
    return read_weights(cached)


def _download(row: PublishedWeights, folder: Path, *, place: Path) -> Path:
    with needs_extra("torch", f"reading {row.url}", f"use {HUB}timm/{row.architecture}.tv_in1k"):
        import torch
    path = folder / row.file_name
    try:
        torch.hub.download_url_to_file(row.url, str(path), hash_prefix=row.hash)
    except OSError as error:
        raise UserError(f"cannot download {row.url} ({error}); download it elsewhere and put it at {place}") from error
    except RuntimeError as error:  # the hash
        raise UserError(f"the download of {row.url} is damaged ({error}); try again") from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
