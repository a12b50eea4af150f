"""torchvision's published weights: from the cache, from a file placed there by hand, or from torchvision's server."""

import hashlib
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from parity.conversion.files import open_regular, read_regular, write_text
from parity.errors import needs_extra
from resnet_flax.cache import cache_directory
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.files import Weights, read_weights, write_weights
from resnet_flax.weights.hub import HUB
from resnet_flax.weights.published import PublishedWeights

logger = logging.getLogger("resnet_flax.weights")


def fetch_published(row: PublishedWeights) -> Weights:
    """The weights, converted and cached on first use.

    Raises:
        UserError: if they cannot be downloaded, do not have the published hash, or are of another network.
    """
    folder = cache_directory("weights")
    cached = (folder / row.file_name).with_suffix(".safetensors")
    if (weights := _read_cached(cached, row)) is not None:
        return weights
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    placed = [folder / row.file_name, torch_home / "hub" / "checkpoints" / row.file_name]
    source = next((path for path in placed if path.exists()), None)
    if source and not _sha256(source).startswith(row.hash):
        raise UserError(f"{source} is damaged: its SHA-256 does not begin with {row.hash}; remove it and try again")
    with tempfile.TemporaryDirectory(dir=folder) as own:  # other processes may be doing the same
        weights = read_weights(source or _download(row, Path(own), place=placed[0]))
        _require_network(weights, row)
        write_weights(cached, weights.to_model(), replace(weights, metadata=row.preprocessing.to_metadata()))
        write_text(_digest_of(cached), f"{_sha256(cached)}  {cached.name}\n")  # as sha256sum writes it
    return read_weights(cached)


def _digest_of(cached: Path) -> Path:
    return cached.with_suffix(".safetensors.sha256")


def _read_cached(cached: Path, row: PublishedWeights) -> Weights | None:
    """The converted weights of an earlier use; None, with a warning, if they are not what was written then."""
    if not cached.exists():
        return None
    try:
        whole = read_regular(_digest_of(cached), 2**12).split()[:1] == [_sha256(cached).encode()]
    except OSError:
        whole = False
    if not whole:
        logger.warning("%s is damaged, or of another program; it is converted again", cached)
        return None
    weights = read_weights(cached)
    _require_network(weights, row)
    return weights


def _require_network(weights: Weights, row: PublishedWeights) -> None:
    found, wanted = ARCHITECTURES[weights.identity.architecture], ARCHITECTURES[row.architecture]
    if not wanted.has_shapes_of(found):
        raise UserError(
            f"{weights.source} has the weights of {found.name}, not of {wanted.name}; remove it and try again"
        )


def _download(row: PublishedWeights, folder: Path, *, place: Path) -> Path:
    with needs_extra("torch", f"reading {row.url}", f"use {HUB}timm/{row.architecture}.tv_in1k"):
        import torch
    path = folder / row.file_name
    try:
        torch.hub.download_url_to_file(row.url, str(path), hash_prefix=row.hash)
    except OSError as error:
        raise UserError(
            f"cannot download {row.url} ({error}); download it elsewhere and put it at {place}, or "
            "give a file as the weights"
        ) from None  # the request's own frames do not help
    except RuntimeError as error:  # the hash
        raise UserError(f"the download of {row.url} is damaged ({error}); try again") from error
    return path


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
