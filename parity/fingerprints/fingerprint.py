"""`parity.fingerprint`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import ParityError
from parity.fingerprints.chain import Candidate, Chain, Links
from parity.fingerprints.distance import Resampling
from parity.fingerprints.links import FlaxLink, Link, links_of, require_statistics
from parity.fingerprints.photographs import Photographs, as_pixels
from parity.fingerprints.preprocessing import Preprocessing, preprocessings
from parity.fingerprints.report import Fingerprint, Row
from parity.fingerprints.search import Search
from parity.networks import Weights, identified
from parity.sides.networks import name_of


def fingerprint(
    network: Any,
    images: Any,
    candidates: Sequence[Preprocessing] | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
) -> Fingerprint:
    """Finds out from a network's norms which preprocessing, and which arithmetic, it was trained with.

    Every BatchNorm keeps the mean and variance of its input over the training set. The images go through the network in
    eval mode as each candidate has them; the right one is that whose activations have these means and variances. Each
    candidate's discrepancy has an error bar, from a bootstrap over images and channels.

    Args:
        network: an NNX module or a PyTorch module whose norms keep statistics, of which the preprocessing is found
            out. Or the state_dict or checkpoint file of a network that is registered here, such as a ResNet; then also
            the options of the network that its weights do not show.
        images: uint8 (H, W, 3) in RGB or (H, W, 1), as arrays of one or several sizes or as PIL images: photographs
            like those that the network was trained on, 16 or more of them.
        candidates: the preprocessings to choose from, the most usual first; None for ImageNet's, Inception's, CLIP's
            and Caffe's constants and none at all, in RGB and BGR.
        size: height and width in pixels that images are resized to. None takes that of a registered network, unless all
            images have one size that is not above it; for other networks it leaves the images as they are.
        seed: of the bootstrap.

    Returns:
        A report; `print(report)` shows a table, the best candidate first, and what cannot be told apart from it.

    Raises:
        ParityError: for a network without statistics, or whose statistics are those of a new network, for images that
            it does not take, or fewer than two of them.

    Examples:
        >>> import numpy as np, parity, torch
        >>> images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8, momentum=None))
        >>> seen = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5  # what it was trained on
        >>> _ = network.train()(seen)
        >>> report = parity.fingerprint(network, images)
        >>> report.rows[0].difference is None  # the best
        True
    """
    pixels = as_pixels(images)
    channels = pixels[0].shape[-1]
    known = tuple(candidates) if candidates is not None else preprocessings(channels)
    if not known:
        raise ParityError("candidates is empty; pass at least one Preprocessing")
    if isinstance(network, Mapping | str | os.PathLike):
        weights = identified(network if isinstance(network, Mapping) else Path(network))
        return of_weights(weights, pixels, known, size=size, seed=seed)
    links = links_of(network)
    photographs = Photographs(pixels, size)
    return _found(name_of(network), lambda _: links, photographs, known, {}, Candidate(known[0]), seed)


def of_weights(
    weights: Weights, images: Sequence[np.ndarray], known: Sequence[Preprocessing] | None = None, *,
    size: int | None = None, seed: int = 0,
) -> "Fingerprint":  # fmt: skip
    """As `fingerprint`, of a checkpoint that a family has identified, and uint8 (H, W, C) images."""

    def links(options: Mapping[str, Any]) -> list[Link]:
        return [FlaxLink(module, prefix=prefix) for prefix, module in weights.links(options)]

    channels = images[0].shape[-1]
    if channels != weights.in_channels:
        raise ParityError(f"the network takes {weights.in_channels} channel(s), and the images have {channels}")
    known = known or preprocessings(channels)
    photographs = Photographs(images, size or _size(images, weights.image_size))
    start = Candidate(known[0], weights.decided)
    return _found(weights.describe(), links, photographs, known, weights.alternatives(), start, seed)


def _size(images: Sequence[np.ndarray], usual: int) -> int | None:
    """What images are resized to: nothing where all have one size, which is not above the network's usual one."""
    shapes = {image.shape for image in images}
    return None if len(shapes) == 1 and max(images[0].shape[:2]) <= usual else usual


def _found(
    title: str, links: Links, images: Photographs, known: Sequence[Preprocessing],
    alternatives: Mapping[str, Sequence[Any]], start: Candidate, seed: int,
) -> Fingerprint:  # fmt: skip
    require_statistics(links(start.options))
    chain = Chain(links, images, start)
    search = Search(chain, known, alternatives, Resampling(len(images), seed), start, crops=images.size is not None)
    differences = search.run()
    best = search.best
    curve = search.discrepancy(best, 0, chain.depth)
    whole = np.mean(list(curve.values()), axis=0)
    rows = [Row(best, whole, None, {name: float(draws[0]) for name, draws in curve.items()})]
    for rival, difference in differences.items():
        part = search.discrepancy(rival, *difference.links)
        rows.append(Row(rival, whole + difference.draws, difference, {n: float(d[0]) for n, d in part.items()}))
    rows[1:] = sorted(rows[1:], key=lambda row: row.discrepancy)
    return Fingerprint(title, len(images), images.channels, rows)
