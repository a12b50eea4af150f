"""Weights of the classes in the loss, for sets whose classes differ in size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from resnet_flax.data import Source
from resnet_flax.data.class_list import read_text
from resnet_flax.errors import UserError

BALANCED = "balanced"


def class_weights(setting: str | None, source: Source) -> tuple[float, ...] | None:
    """The weight of each class of the training set; None for none.

    Args:
        setting: "balanced" for images / (classes * images of the class), as in scikit-learn (0 for a class without
            images); or a file with one number per line in the order of the classes, or a .json list or {class: number}.

    Raises:
        UserError: if the file has anything but one finite weight of at least 0 for each class, not all of them 0.
    """
    if setting is None:
        return None
    if setting == BALANCED:
        counts = np.bincount(source.labels, minlength=source.num_classes)
        present = np.maximum(counts, 1)
        return tuple(np.where(counts > 0, len(source) / (source.num_classes * present), 0.0).tolist())
    path = Path(setting)
    text = read_text(path)
    try:
        content = json.loads(text) if path.suffix == ".json" else [float(line) for line in text.split()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"--class-weights {path} has something other than numbers ({error})") from error
    if isinstance(content, dict):
        names = set(source.class_names)
        if content.keys() != names:
            odd = sorted(map(str, content.keys() ^ names))[:5]
            raise UserError(f"--class-weights {path} must have each class of {source.spec} once; see {', '.join(odd)}")
        content = [content[name] for name in source.class_names]
    if not isinstance(content, list) or len(content) != source.num_classes:
        found = f"{len(content)} values" if isinstance(content, list) else "no list"
        raise UserError(f"--class-weights {path} has {found}, but {source.spec} has {source.num_classes} classes")
    if not all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in content) or not any(content):
        raise UserError(f"--class-weights {path}: weights must be finite, at least 0, and not all 0")
    return tuple(map(float, content))
