"""What names show of arithmetic and of whole projects, beyond the best-known ones."""

import re

import numpy as np

from tests.resnet_flax.weights.cases import (
    Case,
    body,
    copies,
    cut,
    mlp,
    new,
    prefixed,
    renamed,
    uncounted,
)
from tests.resnet_flax.weights.others import children, hugging_face_flax

DETECTION = {"backbone.fpn.inner_blocks.0.weight": new(256, 256, 1, 1)}


def detection(state):
    return prefixed("backbone.body.", body(state)) | DETECTION


def maskrcnn_benchmark(state):
    named = {re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name): array for name, array in uncounted(body(state)).items()}
    return {"model": prefixed("module.backbone.body.", named) | {"module.rpn.head.conv.weight": new(9, 9, 3, 3)}}


def r50(*args, **kwargs):
    return Case(*args, **({"architecture": "resnet50"} | kwargs))


CASES = [
    r50("Hugging Face's Flax", hugging_face_flax, "note", "Hugging Face's Flax", file="flax_model.msgpack"),
    r50(
        "Hugging Face's Flax",
        lambda s: {n.replace("resnet.", ""): a for n, a in hugging_face_flax(body(s)).items()},
        "note",
        "Hugging Face's Flax",
        classes=0,
    ),
    r50(
        "maskrcnn-benchmark",
        maskrcnn_benchmark,
        "warning",
        "STRIDE_IN_1X1",
        classes=0,
        options=(("norm_epsilon", 0.0),),
    ),
    r50(
        "maskrcnn-benchmark",
        maskrcnn_benchmark,
        "warning",
        "they have epsilon 0; taken with norm_epsilon=0.0",
        classes=0,
        options=(("norm_epsilon", 0.0),),
    ),
    # torchvision sets epsilon to 0 for its first files only
    r50(
        "torchvision's detection networks",
        detection,
        "warning",
        "name is that of a detection network",
        file="fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        classes=0,
    ),
    r50(
        "torchvision's detection networks",
        lambda s: detection(uncounted(s)),
        "warning",
        "epsilon is 0 in torchvision's published weights and 1e-5 elsewhere; assumed: 1e-5",
        file="keypointrcnn_resnet50_fpn_coco-9f466800.pth",
        classes=0,
    ),
    r50(
        "torchvision's segmentation networks",
        lambda s: prefixed("encoder.", body(s)) | {"segmentation_head.0.weight": new(2, 16, 3, 3)},
        "warning",
        "entries of a segmentation head",
        classes=0,
    ),
    Case(
        "re-identification",
        lambda s: prefixed("base.", body(s)) | {"bottleneck.running_mean": new(512), "classifier.weight": new(9, 512)},
        "warning",
        "stride 1; assumed: 2; settle it with last_stride",
        classes=0,
    ),
    Case("re-identification", body, "warning", "stride 1", file="market1501_resnet18.pth", classes=0),
    r50("Keras, TensorFlow", lambda s: s, "warning", "pad as SAME does", file="resnet50_keras.pth"),
    r50("version 1", lambda s: s, "warning", "stride in each block's first 1x1", file="gluon_resnet50_v1.pth"),
    Case("version 1", lambda s: s, file="resnet18_v1.pth"),  # has no 1x1
    r50("version 1", lambda s: s, file="resnet50_v1.5.pth"),
    r50(
        "standardised kernels", lambda s: s, "warning", "standardised", file="r50_gn_ws.pth", architecture="resnet50_gn"
    ),
    r50(
        "lightly, fastai",
        lambda s: prefixed("0.", renamed(children)(body(s))),
        "warning",
        "resnetaa50 have the same names.*taken as resnet50",
        file="learner.pth",
        classes=0,
    ),
    Case(
        "lightly, fastai",
        lambda s: {
            "model": prefixed("0.", renamed(children)(body(s)))
            | {"1.2.weight": new(1024), "1.2.running_mean": new(1024)}
            | {"1.4.weight": new(512, 1024), "1.6.running_mean": new(512), "1.8.weight": new(5, 512)},
            "opt": {"state": [{"grad_avg": new(9, 9)}], "hypers": [{"lr": 1e-3}]},
        },
        "note",
        "dropped what is not part",
        classes=0,
    ),
    Case(
        "solo-learn",
        lambda s: {
            "state_dict": prefixed("backbone.", body(s))
            | prefixed("momentum_backbone.", copies(body(s)))
            | mlp("projector", 512, 64)
        },
        "refused",
        "'backbone.', 'momentum_backbone.'.*--prefix backbone",
    ),
    Case(
        "solo-learn",
        lambda s: {
            "state_dict": prefixed("backbone.", body(s))
            | prefixed("momentum_backbone.", copies(body(s)))
            | {"classifier.weight": new(6, 512), "classifier.bias": new(6)}
        },
        "note",
        "classifier is the head",
        prefix="backbone",
        classes=6,
    ),
    Case(
        "VISSL",
        lambda s: {
            "phase_idx": 9,
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": prefixed("_feature_blocks.", body(s)),
                        "heads": {"0.clf.0.weight": new(128, 512), "0.clf.0.bias": new(128)},
                    }
                },
                "meters": {"train": {}, "test": {}},
            },
        },
        "note",
        "_feature_blocks",
        classes=0,
    ),
    Case(
        "robustness",
        lambda s: {
            "model": prefixed("module.model.", s)
            | prefixed("module.attacker.model.", s)
            | {"module.normalizer.new_mean": new(3, 1, 1), "module.normalizer.new_std": new(3, 1, 1)},
            "schedule": None,
        },
        "warning",
        "normalises images with itself",
    ),
    Case(
        "3-D and 1-D networks",
        lambda _: {"stem.0.weight": new(64, 3, 3, 7, 7), "layer1.0.conv1.0.weight": new(64, 64, 3, 3, 3)},
        "refused",
        r"stem\.0\.weight is \(64, 3, 3, 7, 7\): a 3-D network",
    ),
    Case(
        "quantised weights",
        lambda s: s | {"layer1.0.conv1.weight_fake_quant.scale": new(1)},
        "refused",
        "observers of quantisation",
    ),
    Case("LoRA", lambda s: s | {"layer1_0_conv1.lora_down.weight": new(4, 64, 1, 1)}, "refused", "LoRA adapters"),
    Case(
        "another network",
        lambda s: s | {"conv1.weight": new(64, 0, 7, 7)},
        "refused",
        r"is \(64, 0, 7, 7\)",
    ),
    r50(
        "lightly, fastai",
        renamed(children),
        "note",
        "children",
        architecture="resnet50d",
    ),
    Case("FSDP's flattened parameters", lambda _: {"_flat_param": new(99)}, "refused", "FULL_STATE_DICT"),
    Case(
        "another network",
        lambda s: {re.sub("conv1", "conv1.paths.0.conv", name): a for name, a in s.items() if "layer" in name},
        "refused",
        r"layer1\.0\.conv1\.paths",
    ),
    Case(
        "entries inside a block", lambda s: s | {"bn1.aux_bn.0.weight": new(64)}, "refused", r"bn1\.aux_bn\.0\.weight"
    ),
    Case("a network that is cut short", lambda s: cut(r"^layer[234]", s), "refused", "stages of 2 blocks"),
    Case(
        "a network that is cut short",
        lambda s: cut(r"^layer4\.1\.conv2\.weight", s),
        "refused",
        r"layer4\.1\.conv2\.weight",
    ),
    Case(
        "a tied network",
        lambda s: {"net": s, "model": s, "step": np.int64(3)},
        "note",
        "hold tensors",
    ),
]
