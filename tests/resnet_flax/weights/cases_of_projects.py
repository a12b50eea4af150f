"""The ResNets of other projects and frameworks, and what only resembles one."""

import numpy as np

from tests.resnet_flax.weights.cases import (
    Case,
    body,
    cut,
    head,
    new,
    prefixed,
    renamed,
    uncounted,
)
from tests.resnet_flax.weights.others import (
    children,
    detectron2,
    haiku,
    jax_resnet,
    kuangliu,
    linen_example,
    pycls,
    residual_blocks,
    residual_sequential,
    weiaicunzai,
)

DEEP_STEM = {
    "conv1.0.weight": new(32, 3, 3, 3),
    "conv1.1.weight": new(32),
    "conv1.1.bias": new(32),
    "conv1.1.running_mean": new(32),
    "conv1.1.running_var": new(32),
    "conv1.3.weight": new(32, 32, 3, 3),
    "conv1.6.weight": new(64, 32, 3, 3),
}


CASES = [
    Case(
        "kuangliu/pytorch-cifar",
        lambda s: renamed(kuangliu)(s | {"conv1.weight": np.broadcast_to(np.float32(1), (64, 3, 3, 3))}),
        "note",
        "linear is the head",
    ),
    Case("weiaicunzai/pytorch-cifar100", renamed(weiaicunzai), "note", "weiaicunzai"),
    Case("weiaicunzai/pytorch-cifar100", renamed(weiaicunzai), "note", "weiaicunzai", architecture="resnet50"),
    Case("lightly, fastai", lambda s: prefixed("backbone.", renamed(children)(body(s))), "note", "children", classes=0),
    Case(
        "lightly, fastai",
        lambda s: prefixed("0.", renamed(children)(body(s))) | {"1.8.weight": new(5, 512)},
        "note",
        "dropped",
        classes=0,
    ),
    Case(
        "a deep stem (resnet*d)", lambda s: DEEP_STEM | cut(r"^conv1\.", s), "refused", r"conv1\.0\.weight.*deep stem"
    ),
    Case(
        "mmpretrain, mmdetection",
        lambda s: {
            "meta": {},
            "state_dict": head(
                prefixed("backbone.", body(s)) | {"head.fc.weight": new(6, 512), "head.fc.bias": new(6)}, "fc"
            ),
        },
        "note",
        "head.fc is the head",
        classes=6,
    ),
    Case(
        "mmpretrain, mmdetection",
        lambda s: (
            prefixed("backbone.", body(s))
            | {"neck.lateral_convs.0.conv.weight": new(256, 512, 1, 1), "bbox_head.cls.weight": new(9, 9)}
        ),
        "note",
        "neck",
        classes=0,
    ),
    Case(
        "detectron2",
        lambda s: renamed(detectron2)(uncounted(body(s))),
        "warning",
        "STRIDE_IN_1X1",
        architecture="resnet50",
        classes=0,
    ),
    Case(
        "detectron2",
        lambda s: {
            "model": prefixed("backbone.bottom_up.", renamed(detectron2)(uncounted(body(s))))
            | {"roi_heads.box_predictor.cls_score.weight": new(81, 1024)}
        },
        "warning",
        "STRIDE_IN_1X1",
        architecture="resnet50",
        classes=0,
    ),
    Case("detectron2", lambda s: renamed(detectron2)(s), "note", "linear is the head"),
    Case(
        "Caffe (Detectron 1, MSRA)",
        lambda s: {"blobs": {"res_conv1_bn_s": new(64), "res2_0_branch2a_w": new(64, 64, 1, 1)}},
        "refused",
        "Caffe's names",
    ),
    Case(
        "Caffe (Detectron 1, MSRA)",
        lambda s: s,
        "warning",
        "hints at Caffe",
        file="resnet50_caffe.pth",
        architecture="resnet50",
    ),
    Case(
        "VGGFace2",
        lambda s: body(s) | {"fc.weight": new(8631, 2048), "fc.bias": new(8631)},
        "warning",
        "8631 classes",
        architecture="resnet50",
        classes=8631,
    ),
    Case(
        "torchvision's segmentation networks",
        lambda s: (
            prefixed("backbone.", body(s))
            | {"classifier.0.weight": new(512, 2048, 3, 3), "classifier.4.weight": new(21, 512, 1, 1)}
        ),
        "warning",
        "taken with output_stride=8",
        architecture="resnet50",
        classes=0,
        options=(("output_stride", 8),),
    ),
    Case(
        "torchvision's segmentation networks",
        lambda s: prefixed("backbone.", body(s)),
        "warning",
        "dilated",
        architecture="resnet50",
        classes=0,
    ),
    Case(
        "torchvision's segmentation networks",
        body,
        "warning",
        "segmentation",
        file="fcn_resnet50_coco.pth",
        architecture="resnet50",
        classes=0,
    ),
    Case(
        "torchvision's detection networks",
        lambda s: (
            prefixed("backbone.body.", uncounted(body(s))) | {"backbone.fpn.inner_blocks.0.weight": new(256, 256, 1, 1)}
        ),
        "warning",
        "epsilon is 0",
        architecture="resnet50",
        classes=0,
    ),
    Case(
        "torchvision's detection networks",
        lambda s: prefixed("backbone.body.", uncounted(body(s))),
        "warning",
        "epsilon 0",
        file="fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        architecture="resnet50",
        classes=0,
        options=(("norm_epsilon", 0.0),),
    ),
    Case(
        "DETR",
        lambda s: {"model": prefixed("backbone.0.body.", uncounted(body(s))) | {"query_embed.weight": new(100, 256)}},
        "warning",
        "1e-5",
        architecture="resnet50",
        classes=0,
    ),
    Case(
        "pycls",
        lambda s: {"model_state": renamed(pycls)(s), "epoch": 1},
        "note",
        "head.fc is the head",
        architecture="resnet50",
    ),
    Case(
        "the Residual networks",
        renamed(residual_blocks),
        "note",
        "Residual blocks",
        architecture="residual18",
        classes=10,
    ),
    Case(
        "the Residual networks",
        renamed(residual_sequential),
        "note",
        "Residual Sequential",
        architecture="residual18",
        classes=10,
    ),
    Case("Linen's example", linen_example, "warning", "SAME", file="params.msgpack"),
    Case("Linen's example", linen_example, "warning", "SAME", file="params.msgpack", architecture="resnet50"),
    Case("jax-resnet", jax_resnet, "note", "jax-resnet", file="params.msgpack"),
    Case("jax-resnet", jax_resnet, "note", "jax-resnet", file="params.msgpack", architecture="resnet50"),
    Case("haiku", haiku, "warning", "SAME", file="params.npz"),
    Case(
        "big_vision's BiT",
        lambda s: {
            "params.root_block.conv_root.kernel": new(7, 7, 3, 64),
            "params.block1.unit1.conv1.kernel": new(1, 1, 64, 64),
        },
        "refused",
        "standardised convolutions",
    ),
    Case(
        "CLIP",
        lambda s: prefixed("visual.", body(s)) | {"visual.attnpool.positional_embedding": new(50, 2048)},
        "refused",
        "attention pool",
    ),
    Case(
        "3-D and 1-D networks",
        lambda s: {n: np.broadcast_to(np.float32(1), (*a.shape, 3)) if a.ndim == 4 else a for n, a in s.items()},
        "refused",
        "3-D network",
    ),
    Case(
        "3-D and 1-D networks",
        lambda s: {n: a[..., 0] if a.ndim == 4 else a for n, a in s.items()},
        "refused",
        "1-D network",
    ),
    Case(
        "attention in the blocks",
        lambda s: s | {"layer1.0.se.fc1.weight": new(4, 64, 1, 1)},
        "refused",
        "squeeze-and-excitation",
    ),
    Case("attention in the blocks", lambda s: s | {"layer1.0.ca.fc1.weight": new(4, 64, 1, 1)}, "refused", "CBAM"),
    Case("blur-pooling", lambda s: s | {"layer2.0.downsample.2.filt": new(128, 1, 3, 3)}, "refused", "blur-pooling"),
    Case("GroupNorm", lambda s: cut("running|tracked", s), "refused", "norms without statistics"),
    Case("quantised weights", lambda s: s | {"layer1.0.conv1.weight_scale": new(64)}, "refused", "quantised"),
    Case("LoRA", lambda s: s | {"layer1.0.conv1.lora_A.weight": new(4, 64)}, "refused", "LoRA"),
    Case("CIFAR networks of three stages", lambda s: cut(r"^layer4", s), "refused", "three stages"),
    Case("entries inside a block", lambda s: s | {"layer1.0.gate": new(1)}, "refused", r"layer1\.0\.gate"),
    Case("another network", lambda s: {"features.0.weight": new(64, 3, 3, 3)}, "refused", "no naming scheme"),
    Case(
        "another network",
        lambda s: {"cls_token": new(1, 1, 768), "pos_embed": new(1, 197, 768)},
        "refused",
        "transformer",
    ),
    Case(
        "file names that hint at arithmetic",
        lambda s: s,
        "warning",
        "anti-aliasing",
        file="resnet50_blur.pth",
        architecture="resnet50",
    ),
    Case(
        "file names that hint at arithmetic",
        lambda s: s,
        "warning",
        "detection network",
        file="maskrcnn_r50.pth",
        architecture="resnet50",
    ),
    Case("file names that hint at arithmetic", lambda s: s, "warning", "another activation", file="resnet18_silu.pth"),
]
