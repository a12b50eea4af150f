"""What a checkpoint that is no network known here does hold, as far as its names and shapes show."""

import re
from collections.abc import Mapping

Shape = tuple[int, ...]

WAY_ON = "fill an NNX module of your own with parity.to_flax(state_dict, module, names=...)"
_REFUSED = f"it is none of the networks here (`python -m resnet_flax models`); {WAY_ON}"

_NAMES: tuple[tuple[str, str], ...] = (
    (r"attnpool\.", "an attention pool, as in CLIP's ModifiedResNet; only global average pooling is known here"),
    (r"(^|\.)stem\.\d+\.", "a deep stem under other names than timm's, conv1.0 and so on"),
    (r"(^|\.)layer0\.",
     "a stem called layer0, as in Cadene's SENets and in PSPNet, whose pooling and strides differ too"),
    (r"(^|\.)(\w*fake_quant\w*|activation_post_process\w*)\.",
     "observers of quantisation; give the checkpoint from before quantisation"),
    (r"(^|\.)_?flat_param", "parameters that FSDP flattened; save them with StateDictType.FULL_STATE_DICT"),
    (r"(^|\.)(qweight|qzeros|SCB|weight_scale|weight_zero_point|absmax|_packed_params)(\.|$)",
     "quantised weights; give the checkpoint from before quantisation"),
    (r"\.lora_[AB]\.|lora_(up|down)", "LoRA adapters; merge them into the weights first (peft: merge_and_unload())"),
    (r"layer\d\.\d+\.(se\.(?!fc[12]\.|conv\.)|se_module\.|attn\.|eca\.)",
     "attention in the blocks under other names than timm's, se.fc1 and se.fc2 or se.conv"),
    (r"layer\d\.\d+\.(cbam|ca|sa|ChannelGate|SpatialGate)\.", "CBAM attention in the blocks"),
    (r"layer\d\.\d+\.convs\.\d", "split convolutions in the blocks (Res2Net)"),
    (r"layer\d\.\d+\.conv2\.(conv|fc1|bn0)\.", "split attention in the blocks (ResNeSt)"),
    (r"layer\d\.\d+\.(bn1|norm1)\.(IN|BN)\.", "instance and batch norms side by side (IBN-Net)"),
    (r"(^|\.)\w*\.filt$|blurpool|\.aa\.",
     "blur-pooling whose filters are entries; timm's resnetblur50 and the like compute theirs"),
    (r"layer\d\.\d+\.(rbr_|rep_)", "re-parametrised branches (RepVGG's)"),
    (r"layer\d\.\d+\.(fixup_|bias1a|bias2a)", "Fixup biases instead of norms"),
    (r"layer\d\.\d+\.\w*(prelu|PReLU)", "PReLU activations, which have weights"),
    (r"(^|\.)layer[5-9]\.", "more than four stages"),
    (r"(^|\.)block\d+\.unit\d+\.|root_block|standardized", "a ResNet v2 with standardised convolutions (BiT)"),
    (r"(^|\.)res\d\w?_branch\d|res_conv1", "Caffe's names (Detectron 1); convert it with detectron2 first"),
    (r"conv_dw|inverted|blocks\.\d+\.\d+\.conv_pw", "a mobile network, not a ResNet"),
    (r"(^|\.)(attention|attn)\.\w*(qkv|query|q_proj)|cls_token|pos_embed", "a transformer, not a ResNet"),
    (r"(^|\.)(down|encoder)\d\.\w*conv|denseblock|_DenseLayer|inception", "a network of another kind, not a ResNet"),
)  # fmt: skip


def seen(shapes: Mapping[str, Shape]) -> str:
    """One sentence on what stands out in these entries, or "" for nothing.

    Args:
        shapes: {name: shape}, under torchvision's names as far as they are known.
    """
    if text := _ranks(shapes):
        return text
    for pattern, what in _NAMES:
        if found := [name for name in shapes if re.search(pattern, name)]:
            shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            return f"{shown}: {what}; {_REFUSED}"
    stages = {match[1] for name in shapes if (match := re.match(r"layer(\d)\.", name))}
    norms = [name for name in shapes if re.search(r"(^|\.)(bn\d|norm\d)\.weight$", name)]
    if stages and norms and not any(name.endswith("running_mean") for name in shapes):
        return (
            f"{norms[0]} and no running_mean anywhere: norms without statistics (GroupNorm, InstanceNorm), which here "
            f"only resnet50_gn has; {WAY_ON}"
        )
    has_stem = any(name.startswith("conv1.") for name in shapes)
    if has_stem and stages and not any(n.startswith("bn1.") for n in norms) and any("bn1" in n for n in norms):
        return f"norms in the blocks and none after conv1: a pre-activation network (ResNet v2); {_REFUSED}"
    return ""


def _ranks(shapes: Mapping[str, Shape]) -> str:
    for name, shape in shapes.items():
        is_kernel = re.search(r"(^|\.)(stem|conv\w*|layer\d)\.", name)
        if (len(shape) == 5 and is_kernel) or (len(shape) == 3 and re.search(r"(^|\.)conv1\.weight$", name)):
            kind = "3-D" if len(shape) == 5 else "1-D"
            return f"{name} is {shape}: a {kind} network, and every network here takes 2-D images; {WAY_ON}"
    return ""
