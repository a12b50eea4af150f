"""Evaluation: every sample counted once, over any number of devices and hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from resnet_flax.errors import UserError
from resnet_flax.training.sharding import AXIS, replicated
from resnet_flax.training.state import Arrays, Network
from resnet_flax.training.step import Forward

Totals = dict[str, jax.Array]


@dataclass(frozen=True)
class Evaluation:
    """The result over a whole set.

    Attributes:
        count: number of samples.
        loss: mean cross-entropy.
        accuracy, top5: fractions in [0, 1]; top5 is 1 with five classes or fewer.
        confusion: int (classes, classes), counts by true and predicted class.
        predicted: int32 (N,), the class of each sample in their order, padding at the end included; -1 for this and for
            damaged images. None among several hosts, of which each has seen a part.
    """

    count: int
    loss: float
    accuracy: float
    top5: float
    confusion: np.ndarray
    predicted: np.ndarray | None = None

    def __str__(self) -> str:
        top5 = f"  top-5 {self.top5:.2%}" if len(self.confusion) > 5 else ""
        return (
            f"top-1 {self.accuracy:.2%}{top5}  loss {self.loss:.4f}  macro-F1 {self.macro_f1:.4f}  "
            f"over {self.count:,} images"
        )

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy of each class (classes,); NaN for classes without samples."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    recall = per_class

    @property
    def precision(self) -> np.ndarray:
        """Of the samples predicted as each class the fraction that are of it (classes,); NaN where none are."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall (classes,), 2 TP / (2 TP + FP + FN); NaN where there is neither."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1))

    @property
    def macro_f1(self) -> float:
        """The mean of `f1` over the classes that have samples or are predicted, as scikit-learn's macro average."""
        f1 = self.f1[~np.isnan(self.f1)]
        return float(f1.mean()) if f1.size else float("nan")

    def score(self, metric: str) -> float:
        """What to maximise for "accuracy", "top5", "macro-f1" or "loss"."""
        return score(getattr(self, metric.replace("-", "_")), metric)


def score(figure: float | None, metric: str) -> float:
    """What to maximise for the figure of a metric: itself, or the negative loss; NaN and None are the worst."""
    if figure is None or np.isnan(figure):
        return float("-inf")
    return -figure if metric == "loss" else figure


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def make_evaluate(
    network: Network, num_classes: int, forward: Forward, *, mesh: Mesh | None = None
) -> Callable[[Arrays, Iterable[Mapping[str, jax.Array]]], Evaluation]:
    """Builds evaluate(arrays, batches) -> Evaluation; batches of {"image", "label", "mask"} on the devices.

    Args:
        forward: (model, batch["image"]) -> logits (N, classes).
        mesh: as for the training step; the batches are split over it.
    """
    wide = mesh is not None and mesh.size > 1
    # On one device, too, where the sums of the first batch lie: with theirs elsewhere `add` would be compiled twice.
    place = None if mesh is None else replicated(mesh) if wide else SingleDeviceSharding(mesh.devices.flat[0])

    def counts(arrays: Arrays, batch: Mapping[str, jax.Array]) -> tuple[Totals, jax.Array]:
        logits = forward(network.model(arrays), batch["image"])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        label, mask = batch["label"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        # The label's rank: the number of other classes that score as high or higher. Of equal scores that of the first
        # class ranks higher, as for argmax; NaN ranks below everything.
        own = jnp.take_along_axis(logits, label[:, None], 1)
        first = label[:, None] <= jnp.arange(num_classes)[None]
        rank = (~((own > logits) | ((own == logits) & first))).sum(1)
        sums = {
            "count": mask.sum(dtype=jnp.int32),
            "loss": jnp.where(mask, losses, 0).sum(),
            "top1": (mask & (rank < 1)).sum(dtype=jnp.int32),
            "top5": (mask & (rank < 5)).sum(dtype=jnp.int32),
            "confusion": jnp.zeros((num_classes, num_classes), jnp.int32)
            .at[label, logits.argmax(1)]
            .add(mask.astype(jnp.int32)),
        }
        predicted = jnp.where(mask, logits.argmax(1), -1).astype(jnp.int32)
        return (jax.lax.psum(sums, AXIS) if wide else sums), predicted

    if wide:
        counts = jax.shard_map(counts, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P(AXIS)))

    @partial(jax.jit, donate_argnums=0)
    def add(totals: Totals, arrays: Arrays, batch: Mapping[str, jax.Array]) -> tuple[Totals, jax.Array]:
        more, predicted = counts(arrays, batch)
        return jax.tree.map(jnp.add, totals, more), predicted

    def evaluate(arrays: Arrays, batches: Iterable[Mapping[str, Any]]) -> Evaluation:
        zeros = {
            "confusion": np.zeros((num_classes, num_classes), np.int32),
            "loss": np.zeros((), jnp.promote_types(arrays[network.parameters[0]].dtype, jnp.float32)),
            **{name: np.zeros((), np.int32) for name in ("count", "top1", "top5")},
        }
        totals: Totals = jax.device_put(zeros, place)
        predicted: list[jax.Array] = []
        for batch in batches:
            totals, classes = add(totals, arrays, batch)
            predicted.append(classes)
        host: dict[str, np.ndarray] = jax.device_get(totals)
        count = int(host["count"])
        if not count:
            raise UserError("none of the images could be read: there is nothing to evaluate")
        return Evaluation(
            count=count,
            loss=float(host["loss"]) / count,
            accuracy=int(host["top1"]) / count,
            top5=int(host["top5"]) / count,
            confusion=host["confusion"],
            predicted=np.concatenate(jax.device_get(predicted)) if jax.process_count() == 1 else None,
        )

    return evaluate
