"""What names show of arithmetic that no shape shows: each sign decides an option or is a doubt."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_flax.layers import GroupNorm
from resnet_flax.models import ARCHITECTURES, Architecture, Bottleneck
from resnet_flax.models.shortcuts import zero_padded
from resnet_flax.weights.identify import Identity
from resnet_flax.weights.selection import Selection


@dataclass(frozen=True)
class Clues:
    """Where signs are looked for.

    Attributes:
        path: of the file; its name and its folder's are read.
        selection: how the network lies in the file.
        identity: the network.
        counted: whether the norms have num_batches_tracked.
    """

    path: Path
    selection: Selection
    identity: Identity
    counted: bool

    def named(self, pattern: str) -> bool:
        """Whether the file's or its folder's name has a word of the pattern."""
        return any(re.search(rf"(?<![a-z0-9])({pattern})(?![a-z])", name) for name in _names(self.path))

    @property
    def row(self) -> Architecture:
        return ARCHITECTURES[self.identity.architecture]

    @property
    def others(self) -> Collection[str]:
        return self.selection.dropped


@dataclass(frozen=True)
class Sign:
    """One sign.

    Attributes:
        applies: whether it is there.
        text: what was seen, and what it means.
        options: what it decides, as `resnet_flax.weights.arithmetic` has them; empty for a doubt.
        settled_by: the arguments of `ResNet` that settle it, and "architecture" where its name does: where one is
            given, there is no warning.
        of_the_architecture: whether a config.json that names the architecture settles it.
    """

    applies: Callable[[Clues], bool]
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    settled_by: tuple[str, ...] = ()
    of_the_architecture: bool = True


_DILATE = ("output_stride", "replace_stride_with_dilation")
_DILATED = r"fcn|deeplabv?\d*\w*|pspnet|lraspp|upernet|segmentation|danet|dc5|dilated|os8|os16"
_EPSILON_0 = (
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
    "retinanet_resnet50_fpn_coco-eeacb38b.pth",
)
"""The files for which torchvision sets its frozen norms' epsilon to 0 (`overwrite_eps`, release 0.29); no others."""
_CAFFE = ("stride_in_first_1x1", "max_pool_ceil")
_FIRST_1X1 = ("stride_in_first_1x1",)
_V1 = "with the stride in each block's first 1x1 convolution"


def _has(clues: Clues, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in clues.others)


def _is_segmentation(clues: Clues) -> bool:
    return clues.selection.prefix.endswith("backbone.") and _has(clues, r"^(\w+\.)*(aux_)?classifier\.\d\.")


def _has_epsilon_0(clues: Clues) -> bool:
    own = clues.selection.layout.name == "maskrcnn-benchmark" or clues.path.name in _EPSILON_0
    return own and not clues.counted


def _is_bottleneck(clues: Clues) -> bool:
    return clues.row.block is Bottleneck


SIGNS: tuple[Sign, ...] = (
    Sign(
        lambda c: _is_segmentation(c) and _is_bottleneck(c),
        "backbone.* beside a classifier of convolutions: torchvision's segmentation networks, whose layer3 and layer4 "
        "are dilated (output stride 8)",
        {"output_stride": 8},
        _DILATE,
    ),
    Sign(
        lambda c: not _is_segmentation(c) and c.named(_DILATED),
        "the file's name is that of a segmentation network or DETR-DC5, whose last stages are often dilated; assumed: "
        "not dilated",
        settled_by=_DILATE,
    ),
    Sign(
        lambda c: not _is_segmentation(c) and not c.named(_DILATED)
        and _has(c, r"(^|\.)(decode_head|auxiliary_head|sem_seg_head|segmentation_head|seg_head|aspp|psp|ppm)\."),
        "there are entries of a segmentation head, before which the last stages are often dilated; assumed: not "
        "dilated",
        settled_by=_DILATE,
    ),
    Sign(
        lambda c: c.selection.prefix == "backbone." and not c.others and not c.identity.num_classes
        and _is_bottleneck(c) and not c.named(_DILATED),
        "every name begins with backbone. and there is no head: torchvision's segmentation networks are saved so, and "
        "their layer3 and layer4 are dilated; others' are not; assumed: not dilated",
        settled_by=_DILATE,
    ),
    Sign(
        _has_epsilon_0,
        "frozen norms of a published file of torchvision's, or of maskrcnn-benchmark: they have epsilon 0",
        {"norm_epsilon": 0.0},
        ("norm_epsilon",),
    ),
    Sign(
        lambda c: c.selection.prefix.endswith("body.") and not c.counted and not _has_epsilon_0(c),
        "body.* without num_batches_tracked: frozen norms of a detection network, whose epsilon is 0 in torchvision's "
        "published weights and 1e-5 elsewhere; assumed: 1e-5",
        settled_by=("norm_epsilon",),
    ),
    Sign(
        lambda c: c.selection.layout.name == "maskrcnn-benchmark" and _is_bottleneck(c),
        f"maskrcnn-benchmark's names: its MSRA models are {_V1} (STRIDE_IN_1X1) and with images in BGR, its ResNeXts "
        "are not; assumed: torchvision's arithmetic",
        settled_by=_FIRST_1X1,
    ),
    Sign(
        lambda c: c.named(r"caffe|caffe2|msra|r-50|r-101|detectron1?"),
        f"the file's name hints at Caffe: a network {_V1}, max-pooling that rounds up and images in BGR from 0 to 255; "
        "assumed: torchvision's",
        settled_by=_CAFFE,
    ),
    Sign(
        lambda c: c.identity.num_classes == 8631,
        f"8631 classes are VGGFace2's, whose published ResNet-50s come from Caffe: {_V1}, max-pooling that rounds up "
        "and images in BGR from 0 to 255; assumed: torchvision's arithmetic",
        settled_by=_CAFFE,
    ),
    Sign(
        lambda c: c.selection.layout.name == "detectron2" and _is_bottleneck(c),
        f"detectron2's names: its MSRA models are {_V1} (STRIDE_IN_1X1) and with images in BGR, its torchvision models "
        "are not; assumed: torchvision's arithmetic",
        settled_by=_FIRST_1X1,
    ),
    Sign(
        lambda c: c.named(r"resnet[-_]?\d+[-_]?v1(?!\d|[-_.]?5)") and _is_bottleneck(c),
        f"the file's name is that of version 1 of the network, which the paper and GluonCV have {_V1}; assumed: "
        "version 1.5, torchvision's",
        settled_by=_FIRST_1X1,
    ),
    Sign(
        lambda c: c.named(r"tf|tensorflow|keras"),
        "the file's name hints at TensorFlow, whose ResNets pad as SAME does, and at Keras, whose are "
        f"{_V1} and have epsilon 1.001e-5; assumed: torchvision's arithmetic",
        settled_by=("norm_epsilon", *_FIRST_1X1),
    ),
    Sign(
        lambda c: c.named(r"_?d2|detectron2|mask_?rcnn\w*|faster_?rcnn\w*|retinanet\w*|fpn") and not _has_epsilon_0(c),
        "the file's name is that of a detection network, whose norms are often frozen (epsilon 0 in torchvision's) "
        "and whose stride may be in the first 1x1 convolution; assumed: torchvision's classification arithmetic",
        settled_by=("norm_epsilon", "stride_in_first_1x1"),
    ),
    Sign(
        lambda c: c.named(r"\w*blur\w*|aa|antialiased|lpf\d?|\w*resne(x)?taa\w*") and not c.row.options.get("aa_layer"),
        "the file's name hints at anti-aliasing, which has no weights; assumed: none",
        settled_by=("aa_layer", "architecture"),
    ),
    Sign(
        lambda c: c.row.options.get("norm_layer") is GroupNorm and not c.named(r"\w*_gn|group_?norm"),
        "the norms have no statistics, as GroupNorm, InstanceNorm and LayerNorm have none; assumed: GroupNorm with 32 "
        "groups, as in timm's resnet50_gn",
        settled_by=("norm_layer", "architecture"),
    ),
    Sign(
        lambda c: c.named(r"[gb]n[-_]?ws|ws[-_]?gn|weight_?standardi[sz]\w*|bit[-_][sml]"),
        "the file's name hints at standardised kernels (arXiv:1903.10520), which no shape shows; assumed: plain ones",
        settled_by=("conv_layer",),
    ),
    Sign(
        lambda c: _has(c, r"(^|\.)bottleneck\.running_mean$") or c.named(r"\w*reid|market1501|msmt17|dukemtmc\w*"),
        "a norm called bottleneck or the file's name: a network for re-identification, whose last stage often has "
        "stride 1; assumed: 2",
        settled_by=("last_stride",),
    ),
    Sign(
        lambda c: c.row.options.get("shortcut") is zero_padded,
        "shortcuts between the stages have no parameters: here they take every second pixel and add zeros, half of "
        "them before the other channels and half after; others put all of them after; assumed: half before",
        settled_by=("shortcut", "architecture"),
    ),
    Sign(
        lambda c: c.named(r"gelu|silu|swish|mish|elu|leaky|prelu|hardswish"),
        "the file's name hints at another activation than ReLU; assumed: ReLU",
        settled_by=("activation",),
    ),
    Sign(
        lambda c: c.selection.layout.pads_same,
        "these networks pad as TensorFlow's SAME does, on one side where a layer with stride 2 meets an even size; "
        "here both sides are padded: the outputs agree where every such size is odd (images of 32k + 1 pixels, such as "
        "225), and differ otherwise",
        of_the_architecture=False,
    ),
    Sign(
        lambda c: _has(c, r"(^|\.)(normali[sz]\w*|preprocess\w*)\.") or _has(c, r"(^|\.)(pixel_)?(mean|std)$"),
        "the file has a mean and standard deviation of its own, which this network normalises images with itself; they "
        "were dropped, so give images that are normalised with them",
        of_the_architecture=False,
    ),
    Sign(
        lambda c: c.identity.num_classes > 0 and _has(c, r"(^|\.)(dropout|neck)\.\w*\.weight$"),
        "layers between the body and the head were dropped",
        of_the_architecture=False,
    ),
)  # fmt: skip


def _names(path: Path) -> tuple[str, ...]:
    """What a file, its folder and in the hub's cache its repository are called, in small letters."""
    folders = path.absolute().parents
    repository = folders[2].name if len(folders) > 2 and folders[1].name == "snapshots" else ""
    return path.name.lower(), folders[0].name.lower(), repository.lower()


def named_architecture(path: Path, candidates: Sequence[str]) -> str | None:
    """The only one of these architectures that is named where nearest to the file: by itself, its folder, the hub."""
    for text in _names(path):
        found = [name for name in candidates if re.search(rf"(?<![a-z0-9]){_spelt(name)}(?![a-z0-9])", text)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _spelt(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=\d)", "[-_]?", name)  # ResNet-50


def signs(clues: Clues) -> list[Sign]:
    """Those that are there."""
    return [sign for sign in SIGNS if sign.applies(clues)]
