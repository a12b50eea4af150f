"""The published weights for the family, as data: torchvision's with their accuracy, and the names of timm's.

The figures are torchvision's own (`torchvision.models.get_model_weights(name)`, release 0.29), which the tests compare.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from resnet_flax.data.preprocessing import Preprocessing
from resnet_flax.data.transforms import EvaluationTransform

_BASE_URL = "https://download.pytorch.org/models"
_REPOSITORY = "https://github.com/pytorch/vision"
_REFERENCE = f"{_REPOSITORY}/tree/main/references/classification"
_NEW_RECIPE = f"{_REPOSITORY}/issues/3995#new-recipe"
_FIXRES = f"{_NEW_RECIPE}-with-fixres"
_FIRST_V2 = f"{_REPOSITORY}/issues/3995#issuecomment-1013906621"
_64X4D = f"{_REPOSITORY}/pull/5935"
_WIDE = f"{_REPOSITORY}/pull/912#issue-445437439"


@dataclass(frozen=True)
class PublishedWeights:
    """One of torchvision's files.

    Attributes:
        architecture, name: as torchvision names them, such as "resnet50" and "IMAGENET1K_V2".
        hash: the first eight hexadecimal digits of the file's SHA-256.
        resize_size: of the shorter side, in pixels, with bilinear interpolation; the crop is 224.
        top1, top5: accuracy on ImageNet's validation set in percent.
        recipe: the URL of how it was trained.
    """

    architecture: str
    name: str
    hash: str
    resize_size: int
    top1: float
    top5: float
    recipe: str

    @property
    def file_name(self) -> str:
        return f"{self.architecture}-{self.hash}.pth"

    @property
    def url(self) -> str:
        return f"{_BASE_URL}/{self.file_name}"

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(EvaluationTransform(self.resize_size, 224))


PUBLISHED_WEIGHTS: dict[tuple[str, str], PublishedWeights] = {
    (row.architecture, row.name): row
    for row in (
        PublishedWeights("resnet18", "IMAGENET1K_V1", "f37072fd", 256, 69.758, 89.078, f"{_REFERENCE}#resnet"),
        PublishedWeights("resnet34", "IMAGENET1K_V1", "b627a593", 256, 73.314, 91.420, f"{_REFERENCE}#resnet"),
        PublishedWeights("resnet50", "IMAGENET1K_V1", "0676ba61", 256, 76.130, 92.862, f"{_REFERENCE}#resnet"),
        PublishedWeights("resnet50", "IMAGENET1K_V2", "11ad3fa6", 232, 80.858, 95.434, _FIRST_V2),
        PublishedWeights("resnet101", "IMAGENET1K_V1", "63fe2227", 256, 77.374, 93.546, f"{_REFERENCE}#resnet"),
        PublishedWeights("resnet101", "IMAGENET1K_V2", "cd907fc2", 232, 81.886, 95.780, _NEW_RECIPE),
        PublishedWeights("resnet152", "IMAGENET1K_V1", "394f9c45", 256, 78.312, 94.046, f"{_REFERENCE}#resnet"),
        PublishedWeights("resnet152", "IMAGENET1K_V2", "f82ba261", 232, 82.284, 96.002, _NEW_RECIPE),
        PublishedWeights("resnext50_32x4d", "IMAGENET1K_V1", "7cdf4587", 256, 77.618, 93.698, f"{_REFERENCE}#resnext"),
        PublishedWeights("resnext50_32x4d", "IMAGENET1K_V2", "1a0047aa", 232, 81.198, 95.340, _NEW_RECIPE),
        PublishedWeights("resnext101_32x8d", "IMAGENET1K_V1", "8ba56ff5", 256, 79.312, 94.526, f"{_REFERENCE}#resnext"),
        PublishedWeights("resnext101_32x8d", "IMAGENET1K_V2", "110c445d", 232, 82.834, 96.228, _FIXRES),
        PublishedWeights("resnext101_64x4d", "IMAGENET1K_V1", "173b62eb", 232, 83.246, 96.454, _64X4D),
        PublishedWeights("wide_resnet50_2", "IMAGENET1K_V1", "95faca4d", 256, 78.468, 94.086, _WIDE),
        PublishedWeights("wide_resnet50_2", "IMAGENET1K_V2", "9ba9bcbe", 232, 81.602, 95.758, _FIXRES),
        PublishedWeights("wide_resnet101_2", "IMAGENET1K_V1", "32ee1156", 256, 78.848, 94.284, _WIDE),
        PublishedWeights("wide_resnet101_2", "IMAGENET1K_V2", "d733dc28", 232, 82.510, 96.020, _NEW_RECIPE),
    )
}  # fmt: skip
"""{(architecture, weights name): facts}; the last row of an architecture is its "DEFAULT"."""


def published_weights(architecture: str) -> dict[str, PublishedWeights]:
    """{name: facts} of one architecture, the best last."""
    return {name: row for (arch, name), row in PUBLISHED_WEIGHTS.items() if arch == architecture}


@cache
def imagenet_classes() -> tuple[str, ...]:
    """torchvision's names of ImageNet's 1,000 classes, in the order of the logits."""
    return tuple(files("resnet_flax.weights").joinpath("imagenet_classes.txt").read_text().splitlines())


@cache
def timm_tags() -> dict[str, tuple[str, ...]]:
    """{architecture: tags of timm's weights}, each hf-hub:timm/ARCHITECTURE.TAG.

    They are timm's own (`timm.list_pretrained`, release 1.0.31), which the tests compare.
    """
    lines = files("resnet_flax.weights").joinpath("timm_tags.txt").read_text().splitlines()
    return {name: tuple(tags) for name, *tags in map(str.split, lines)}
