"""How others name and lay out the same weights, as data: one row for each.

The networks here have torchvision's names. A layout's rules turn a name of its own into torchvision's; a name that no
rule matches is no entry of such a network.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One way to name and lay out a ResNet.

    Attributes:
        name: of who uses it, as messages have it.
        landmarks: endings of the name of the first block's first kernel, one of which every such network has, and of
            the stem's kernel that comes with it ("" where the block's name is unmistakable).
        rules: (regular expression of their whole name, torchvision's), the first match counts.
        kernels: "torch" for (O, I, h, w) and (O, I), "flax" for (h, w, I, O) and (I, O).
        numbered: whether blocks are numbered through all stages; torchvision's names then have "block" + their number,
            and `Layout.renamed` finds the stages.
        pads_same: whether the layers with stride 2 pad as TensorFlow's "SAME" does.
    """

    name: str
    landmarks: tuple[tuple[str, str], ...]
    rules: Rules
    kernels: str = "torch"
    numbered: bool = False
    pads_same: bool = False

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """{their name: torchvision's} of the names that some rule matches."""
        patterns = _compiled(self.rules)
        found: dict[str, str] = {}
        for name in names:
            for pattern, replacement in patterns:
                if match := pattern.fullmatch(name):
                    found[name] = replacement(match)
                    break
        return _in_stages(found) if self.numbered else found

    def to_torch(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array of theirs, whose torchvision name is `name`, in PyTorch's layout (a view)."""
        if self.kernels == "torch":
            return array
        if _NORM.search(name):
            return array.reshape(-1)  # haiku's are (1, 1, 1, C)
        if array.ndim == 4:
            return array.transpose(3, 2, 0, 1)
        return array.T if array.ndim == 2 else array


_NORM = re.compile(r"(^|\.)(bn\d|downsample\.1)\.")


@cache
def _compiled(rules: Rules) -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]:
    return [(re.compile(pattern), _replacement(text)) for pattern, text in rules]


def _replacement(text: str) -> Callable[[re.Match[str]], str]:
    """From a match to `text`, where {1} is its first group and {1+1}, {1-1}, {1//3+1} are computed from its number."""

    def replace(match: re.Match[str]) -> str:
        def field(found: re.Match[str]) -> str:
            value, divisor, offset = match[int(found[1])], found[2], found[3]
            return str(int(value) // int(divisor or 1) + int(offset or 0)) if divisor or offset else value

        return re.sub(r"\{(\d)(?://(\d))?([+-]\d)?\}", field, text)

    return replace


def _in_stages(names: Mapping[str, str]) -> dict[str, str]:
    """`block7.conv1.weight` -> `layer2.0.conv1.weight`: a stage begins with a block that has a projection."""
    numbers = sorted({int(m[1]) for name in names.values() if (m := re.match(r"block(\d+)\.", name))})
    projected = {int(m[1]) for name in names.values() if (m := re.match(r"block(\d+)\.downsample\.", name))}
    place, stage, index = {}, 1, -1
    for position, number in enumerate(numbers):
        if position and number in projected:
            stage, index = stage + 1, -1
        index += 1
        place[number] = f"layer{stage}.{index}."
    return {
        theirs: re.sub(r"block(\d+)\.", lambda match: place[int(match[1])], name, count=1)
        for theirs, name in names.items()
    }


_FIELDS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_ANY = r"(.+)"


def _flax(module: str, ours: str) -> Rules:
    """A Flax layer's leaves under PyTorch's names."""
    return (
        (rf"{module}\.kernel", f"{ours}.weight"),
        (rf"{module}\.scale", f"{ours}.weight"),
        (rf"{module}\.bias", f"{ours}.bias"),
        (rf"{module}\.mean", f"{ours}.running_mean"),
        (rf"{module}\.var", f"{ours}.running_var"),
    )


def _haiku(module: str, ours: str) -> Rules:
    return (
        (rf"{module}\.w", f"{ours}.weight"),
        (rf"{module}\.b", f"{ours}.bias"),
        (rf"{module}\.scale", f"{ours}.weight"),
        (rf"{module}\.offset", f"{ours}.bias"),
        (rf"{module}(?:\.~)?\.mean_ema\.average", f"{ours}.running_mean"),
        (rf"{module}(?:\.~)?\.var_ema\.average", f"{ours}.running_var"),
    )


_TORCHVISION: Rules = (
    (rf"(layer\d+\.\d+)\.shortcut\.{_ANY}", "{1}.downsample.{2}"),  # kuangliu/pytorch-cifar
    (rf"((?:conv1|bn1|maxpool|layer\d+|fc)\.{_ANY})", "{1}"),  # a maxpool with entries is ResNet-RS's
)
_HAIKU_BLOCK = r"(?:~\.)?block_group_(\d)\.(?:~\.)?block_(\d+)\.(?:~\.)?"
_HF_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)"

TORCHVISION = Layout("torchvision", (("layer1.0.conv1.weight", ""),), _TORCHVISION)

CHILDREN = "a Sequential of torchvision's children (lightly, fastai)"

LAYOUTS: tuple[Layout, ...] = (
    TORCHVISION,
    Layout(
        "OpenMMLab's deep stem",
        (("layer1.0.conv1.weight", "stem.0.weight"),),
        ((rf"stem\.7\.{_ANY}", "bn1.{1}"), (rf"stem\.([0-6]\.{_ANY})", "conv1.{1}"), *_TORCHVISION),
    ),
    Layout(
        "maskrcnn-benchmark",
        (("layer1.0.conv1.weight", "stem.conv1.weight"),),
        ((rf"stem\.(conv1|bn1)\.{_ANY}", "{1}.{2}"), *_TORCHVISION),
    ),
    Layout(
        "Hugging Face",
        (("encoder.stages.0.layers.0.layer.0.convolution.weight", ""),),
        (
            (rf"{_HF_BLOCK}\.layer\.(\d)\.convolution\.{_ANY}", "layer{1+1}.{2}.conv{3+1}.{4}"),
            (rf"{_HF_BLOCK}\.layer\.(\d)\.normalization\.{_ANY}", "layer{1+1}.{2}.bn{3+1}.{4}"),
            (rf"{_HF_BLOCK}\.shortcut\.convolution\.{_ANY}", "layer{1+1}.{2}.downsample.0.{3}"),
            (rf"{_HF_BLOCK}\.shortcut\.normalization\.{_ANY}", "layer{1+1}.{2}.downsample.1.{3}"),
            (rf"{_HF_BLOCK}\.{_ANY}", "layer{1+1}.{2}.{3}"),
            (rf"embedder\.embedder\.convolution\.{_ANY}", "conv1.{1}"),
            (rf"embedder\.embedder\.normalization\.{_ANY}", "bn1.{1}"),
        ),
    ),
    Layout(
        "Hugging Face's Flax",
        tuple((f"{top}encoder.stages.0.layers.0.layer.0.convolution.kernel", "") for top in ("resnet.", "")),
        (
            *_flax(rf"(?:resnet\.)?{_HF_BLOCK}\.layer\.(\d)\.convolution", "layer{1+1}.{2}.conv{3+1}"),
            *_flax(rf"(?:resnet\.)?{_HF_BLOCK}\.layer\.(\d)\.normalization", "layer{1+1}.{2}.bn{3+1}"),
            *_flax(rf"(?:resnet\.)?{_HF_BLOCK}\.shortcut\.convolution", "layer{1+1}.{2}.downsample.0"),
            *_flax(rf"(?:resnet\.)?{_HF_BLOCK}\.shortcut\.normalization", "layer{1+1}.{2}.downsample.1"),
            *_flax(r"(?:resnet\.)?embedder\.embedder\.convolution", "conv1"),
            *_flax(r"(?:resnet\.)?embedder\.embedder\.normalization", "bn1"),
            *_flax(r"classifier\.1", "fc"),
        ),
        kernels="flax",
    ),
    Layout(
        "Residual blocks",
        (("resnet_block1.0.conv1.weight", ""),),
        (
            (r"0\.(.+)", "conv1.{1}"),
            (r"1\.(.+)", "bn1.{1}"),
            (r"resnet_block(\d)\.(.+)", "layer{1}.{2}"),
            (r"fc\.1\.(.+)", "fc.{1}"),
        ),
    ),
    Layout(
        "Residual Sequential",
        (("1.0.conv1.weight", "0.0.weight"),),
        (
            (r"0\.0\.(.+)", "conv1.{1}"),
            (r"0\.1\.(.+)", "bn1.{1}"),
            (r"([1-4])\.(\d+\..+)", "layer{1}.{2}"),
            (rf"7\.{_FIELDS}", "fc.{1}"),
        ),
    ),
    Layout(
        CHILDREN,
        (("4.0.conv1.weight", "0.weight"), ("4.0.conv1.weight", "0.0.weight")),
        (
            (rf"0\.([0-6])\.{_FIELDS}", "conv1.{1}.{2}"),  # a deep stem
            (rf"0\.{_FIELDS}", "conv1.{1}"),
            (rf"1\.{_FIELDS}", "bn1.{1}"),
            (r"([4-7])\.(\d+\..+)", "layer{1-3}.{2}"),
            (rf"9\.{_FIELDS}", "fc.{1}"),
        ),
    ),
    Layout(
        "detectron2",
        (("res2.0.conv1.weight", ""),),
        (
            (r"stem\.conv1\.norm\.(.+)", "bn1.{1}"),
            (r"stem\.conv1\.(.+)", "conv1.{1}"),
            (r"res(\d)\.(\d+)\.conv(\d)\.norm\.(.+)", "layer{1-1}.{2}.bn{3}.{4}"),
            (r"res(\d)\.(\d+)\.shortcut\.norm\.(.+)", "layer{1-1}.{2}.downsample.1.{3}"),
            (r"res(\d)\.(\d+)\.shortcut\.(.+)", "layer{1-1}.{2}.downsample.0.{3}"),
            (r"res(\d)\.(.+)", "layer{1-1}.{2}"),
        ),
    ),
    Layout(
        "weiaicunzai/pytorch-cifar100",
        (("conv2_x.0.residual_function.0.weight", ""),),
        (
            (r"conv1\.0\.(.+)", "conv1.{1}"),
            (r"conv1\.1\.(.+)", "bn1.{1}"),
            (r"conv(\d)_x\.(\d+)\.residual_function\.([036])\.(.+)", "layer{1-1}.{2}.conv{3//3+1}.{4}"),
            (r"conv(\d)_x\.(\d+)\.residual_function\.([147])\.(.+)", "layer{1-1}.{2}.bn{3//3+1}.{4}"),
            (r"conv(\d)_x\.(\d+)\.shortcut\.(.+)", "layer{1-1}.{2}.downsample.{3}"),
            (r"conv(\d)_x\.(\d+\..+)", "layer{1-1}.{2}"),
            (r"fc\.(.+)", "fc.{1}"),
        ),
    ),
    Layout(
        "pycls",
        (("s1.b1.f.a.weight", ""),),
        (
                (r"stem\.conv\.(.+)", "conv1.{1}"),
                (r"stem\.bn\.(.+)", "bn1.{1}"),
                *(
                    rule
                    for number, letter in enumerate("abc", 1)
                    for rule in (
                        (rf"s(\d)\.b(\d+)\.f\.{letter}\.(.+)", f"layer{{1}}.{{2-1}}.conv{number}.{{3}}"),
                        (rf"s(\d)\.b(\d+)\.f\.{letter}_bn\.(.+)", f"layer{{1}}.{{2-1}}.bn{number}.{{3}}"),
                    )
                ),
                (r"s(\d)\.b(\d+)\.proj\.(.+)", "layer{1}.{2-1}.downsample.0.{3}"),
                (r"s(\d)\.b(\d+)\.bn\.(.+)", "layer{1}.{2-1}.downsample.1.{3}"),
                (r"s(\d)\.b(\d+)\.(.+)", "layer{1}.{2-1}.{3}"),
        ),
    ),
    Layout(
        "Flax's Linen example",
        (("BottleneckResNetBlock_0.Conv_0.kernel", ""), ("ResNetBlock_0.Conv_0.kernel", "")),
        (
            *_flax("conv_init", "conv1"),
            *_flax("bn_init", "bn1"),
            *_flax(r"(?:Bottleneck)?ResNetBlock_(\d+)\.Conv_(\d)", "block{1}.conv{2+1}"),
            *_flax(r"(?:Bottleneck)?ResNetBlock_(\d+)\.BatchNorm_(\d)", "block{1}.bn{2+1}"),
            *_flax(r"(?:Bottleneck)?ResNetBlock_(\d+)\.conv_proj", "block{1}.downsample.0"),
            *_flax(r"(?:Bottleneck)?ResNetBlock_(\d+)\.norm_proj", "block{1}.downsample.1"),
            (r"(?:Bottleneck)?ResNetBlock_(\d+)\.(.+)", "block{1}.{2}"),
            *_flax("Dense_0", "fc"),
        ),
        kernels="flax",
        numbered=True,
        pads_same=True,
    ),
    *(
        Layout(
            "jax-resnet",
            ((f"{first}.ConvBlock_0.Conv_0.kernel", f"{stem}.ConvBlock_0.Conv_0.kernel"),),
            (
                *_flax(rf"{stem}\.ConvBlock_0\.Conv_0", "conv1"),
                *_flax(rf"{stem}\.ConvBlock_0\.BatchNorm_0", "bn1"),
                *_flax(rf"{block}\.ConvBlock_(\d)\.Conv_0", "block{1}.conv{2+1}"),
                *_flax(rf"{block}\.ConvBlock_(\d)\.BatchNorm_0", "block{1}.bn{2+1}"),
                *_flax(rf"{block}\.ResNetSkipConnection_0\.ConvBlock_0\.Conv_0", "block{1}.downsample.0"),
                *_flax(rf"{block}\.ResNetSkipConnection_0\.ConvBlock_0\.BatchNorm_0", "block{1}.downsample.1"),
                *_flax(head, "fc"),
            ),
            kernels="flax",
            numbered=True,
        )
        for first, stem, block, head in (
            ("layers_2", "layers_0", r"layers_(\d+)", r"layers_\d+"),
            ("ResNetBlock_0", "ResNetStem_0", r"ResNetBlock_(\d+)", "Dense_0"),
            ("ResNetBottleneckBlock_0", "ResNetStem_0", r"ResNetBottleneckBlock_(\d+)", "Dense_0"),
        )
    ),
    Layout(
        "haiku",
        (("block_group_0.~.block_0.~.conv_0.w", ""), ("block_group_0.block_0.conv_0.w", "")),
        (
            *_haiku(r"(?:~\.)?initial_conv", "conv1"),
            *_haiku(r"(?:~\.)?initial_batchnorm", "bn1"),
            *_haiku(rf"{_HAIKU_BLOCK}conv_(\d)", "layer{1+1}.{2}.conv{3+1}"),
            *_haiku(rf"{_HAIKU_BLOCK}batchnorm_(\d)", "layer{1+1}.{2}.bn{3+1}"),
            *_haiku(rf"{_HAIKU_BLOCK}shortcut_conv", "layer{1+1}.{2}.downsample.0"),
            *_haiku(
                rf"{_HAIKU_BLOCK}shortcut_batchnorm", "layer{1+1}.{2}.downsample.1"
            ),
            *_haiku(r"(?:~\.)?logits", "fc"),
        ),
        kernels="flax",
        pads_same=True,
    ),
)  # fmt: skip
"""Every layout known here; torchvision's is first."""
