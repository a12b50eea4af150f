"""Data: sources chosen by a spec, torchvision's transforms, and batches that resume at any step."""

from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.on_device import normalize
from resnet_flax.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.source import Source, SourceOptions
from resnet_flax.data.specs import open_source
from resnet_flax.data.stream import prefetch_to_device
from resnet_flax.data.transforms import (
    EvaluationTransform,
    SmallImageTransform,
    TrainingTransform,
    evaluation_transform,
)

__all__ = [
    "CorruptImage",
    "EvaluationTransform",
    "Preprocessing",
    "SmallImageTransform",
    "Source",
    "SourceOptions",
    "TrainingTransform",
    "evaluation_batches",
    "evaluation_transform",
    "normalize",
    "open_source",
    "prefetch_to_device",
    "steps_per_epoch",
    "training_batches",
]
