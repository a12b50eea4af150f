"""Many arrays as a few long vectors: what an all-reduce sends, and what an elementwise kernel covers in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from resnet_flax.training.state import Arrays

BUCKET_BYTES = 25 * 2**20  # PyTorch's DistributedDataParallel uses the same

Bucket = tuple[list[str], jax.Array]
"""The names of some arrays, and these arrays flattened and concatenated in that order."""


def pack(arrays: Arrays, order: Sequence[str]) -> list[Bucket]:
    """Concatenates the arrays named by `order` into buckets of about `BUCKET_BYTES`, each of one dtype.

    The backward pass computes the last layer's gradient first. Buckets are therefore filled in reverse of `order`, the
    order of the layers, so that most of them can be sent while the rest is still being computed. One all-reduce per
    array would cost a launch each; a single one for all could start only at the end (Li et al., "PyTorch Distributed",
    arXiv:2006.15704, section 3.2).
    """
    groups: list[list[str]] = []
    size = BUCKET_BYTES
    for name in reversed(order):
        if size >= BUCKET_BYTES or arrays[groups[-1][0]].dtype != arrays[name].dtype:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += arrays[name].nbytes
    return [(names, jnp.concatenate([arrays[name].reshape(-1) for name in names])) for names in groups]


def unpack(buckets: Sequence[Bucket], like: Arrays) -> Arrays:
    """The inverse of `pack`: the arrays in the buckets, with the shapes of those of the same name in `like`."""
    arrays: Arrays = {}
    for names, flat in buckets:
        ends = np.cumsum([like[name].size for name in names])[:-1]
        parts = jnp.split(flat, ends)
        arrays |= {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}
    return arrays
