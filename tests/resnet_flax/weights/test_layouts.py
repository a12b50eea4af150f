"""Where checkpoints come from: a table of layouts, each exact, noted, warned of or refused by what is seen in it.

Entries are filled with their own numbers, so that one in another's place is found; `test_values_of` compares real ones.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.conversion.checkpoints import Checkpoint
from parity.conversion.nesting import unnested
from parity.errors import UsageError
from resnet_flax.weights.files import Weights, from_checkpoint
from tests.resnet_flax.weights.others import (
    Arrays,
    children,
    detectron2,
    haiku,
    hugging_face,
    jax_resnet,
    kuangliu,
    linen_example,
    numbered,
    pycls,
    residual_blocks,
    residual_sequential,
    weiaicunzai,
)

ROOT = Path(__file__).parents[3]


def new(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0.5), shape)


def prefixed(prefix: str, state: Arrays) -> Arrays:
    return {prefix + name: array for name, array in state.items()}


def renamed(scheme: Callable[[str], str]) -> Callable[[Arrays], Arrays]:
    return lambda state: {scheme(name): array for name, array in state.items()}


def body(state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not name.startswith("fc.")}


def uncounted(state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def head(state: Arrays, name: str) -> Arrays:
    return {re.sub(r"^fc\.", f"{name}.", key): array for key, array in state.items()}


def mlp(name: str, *widths: int) -> Arrays:
    layers = {}
    for number, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        layers |= {f"{name}.{2 * number}.weight": new(outputs, inputs), f"{name}.{2 * number}.bias": new(outputs)}
    return layers


def copies(state: Arrays) -> Arrays:
    return {
        name: array + 0 if array.size < 10_000 else np.broadcast_to(array.flat[0] + 0, array.shape)
        for name, array in state.items()
    }


def folded(state: Arrays) -> Arrays:
    convolutions = {name: array for name, array in state.items() if array.ndim == 4}
    biases = {name.replace(".weight", ".bias"): new(len(array)) for name, array in convolutions.items()}
    return convolutions | biases | {name: array for name, array in state.items() if name.startswith("fc.")}


def cut(pattern: str, state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if not re.search(pattern, name)}


def inserted(part: str) -> Callable[[Arrays], Arrays]:
    return lambda state: {re.sub(r"^(layer\d\.\d+)\.", rf"\1.{part}.", name): array for name, array in state.items()}


DEEP_STEM = {
    "conv1.0.weight": new(32, 3, 3, 3), "conv1.1.weight": new(32), "conv1.1.bias": new(32),
    "conv1.1.running_mean": new(32), "conv1.1.running_var": new(32), "conv1.3.weight": new(32, 32, 3, 3),
    "conv1.6.weight": new(64, 32, 3, 3),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One layout.

    Attributes:
        kind: its row in docs/checkpoints.md.
        make: what the file holds, from a network under torchvision's names.
        outcome: "exact", "note" or "warning" (both exact as far as the entries go), or "refused".
        text: a regular expression that the message or some note matches.
        classes: of the head that is found.
        options: the arithmetic that is decided.
    """

    kind: str
    make: Callable[[Arrays], Any]
    outcome: str = "exact"
    text: str = ""
    prefix: str | None = None
    file: str = "weights.pth"
    architecture: str = "resnet18"
    classes: int = 1000
    config: Any = None
    options: tuple[tuple[str, Any], ...] = ()


R50 = {"architecture": "resnet50"}
TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]},
}
HF = {"model_type": "resnet", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}

CASES = [
    Case("torchvision", lambda s: s),
    Case("PyTorch 0.4", uncounted, "note", "no num_batches_tracked"),
    Case("DistributedDataParallel", lambda s: {"state_dict": prefixed("module.", s), "epoch": 3}, "note", "took the entry"),
    Case("torch.compile", lambda s: prefixed("_orig_mod.", s), "note", "prefix '_orig_mod.'"),
    Case("torch.compile", inserted("_orig_mod")),
    Case("torch.compile", lambda s: prefixed("module.", inserted("_orig_mod")(s)), "note", "prefix 'module.'"),
    Case("activation checkpointing, FSDP", inserted("_checkpoint_wrapped_module")),
    Case("activation checkpointing, FSDP", inserted("_fsdp_wrapped_module._checkpoint_wrapped_module")),
    Case("AveragedModel (EMA, SWA)", lambda s: {"model_ema": prefixed("module.", s) | {"n_averaged": np.ones((), np.int64)}},
         "note", "dropped what is no part .*n_averaged"),
    Case("AveragedModel (EMA, SWA)", lambda s: {"model": s, "model_ema": copies(s)}, "refused", "'model.', 'model_ema.'.*--prefix"),
    Case("AveragedModel (EMA, SWA)", lambda s: {"model": s, "model_ema": copies(s)}, "note", "hold tensors", prefix="model_ema"),
    Case("THOP", lambda s: s | {"total_ops": new(1), "layer1.0.total_ops": new(1), "layer1.0.conv1.total_params": new(1)},
         "note", "dropped what is no part"),
    Case("an optimiser beside it", lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": new(9, 9)}}, "param_groups": []}},
         "note", "dropped optimizer"),
    Case("an unknown wrapper", lambda s: {"model_state": s, "epoch": 1}, "note", "took the entry 'model_state'"),
    Case("an unknown wrapper", lambda s: {"network": {"backbone": s}}, "note", "took the entry 'backbone'"),
    Case("an unknown wrapper", lambda s: {"params_ema": s, "metrics": {"top1": new(), "confusion": new(9, 9)}}, "note", "params_ema"),
    Case("criteria, metrics and normalisers", lambda s: prefixed("model.", s) | {"criterion.weight": new(1000)}, "note", "criterion"),
    Case("criteria, metrics and normalisers", lambda s: prefixed("net.", s) | {"val_acc.tp": new(9), "val_acc.fp": new(9)}, "note", "val_acc"),
    Case("criteria, metrics and normalisers", lambda s: prefixed("model.", s) | {"normalize.mean": new(3), "normalize.std": new(3)},
         "warning", "normalises images with itself"),
    Case("a list of parameters", lambda s: list(s.values()), "refused", "122 tensors have no names"),
    Case("a list of parameters", lambda s: {"params": list(s.values())}, "refused", "save model.state_dict"),
    Case("Lightning", lambda s: {"state_dict": prefixed("model.", s), "hyper_parameters": {"lr": 0.1}, "optimizer_states": [],
                                 "callbacks": {"ckpt": {"best": new()}}}, "note", "prefix 'model.'"),
    Case("Lightning", lambda s: {"state_dict": prefixed("net.", head(s, "fc.1"))}, "note", "net.fc.1 is the head"),
    Case("Lightning", lambda s: {"state_dict": prefixed("backbone.", body(s)) | {"classifier.weight": new(5, 512), "classifier.bias": new(5)}},
         "note", "classifier is the head", classes=5),
    Case("a replaced head", lambda s: head(s, "fc.1"), "note", "fc.1 is the head"),
    Case("a replaced head", lambda s: head(s, "last_linear"), "note", "last_linear is the head"),
    Case("a replaced head", lambda s: head(s, "classifier.1"), "note", "classifier.1 is the head"),
    Case("a replaced head", lambda s: head(s, "head.fc"), "note", "head.fc is the head"),
    Case("a replaced head", lambda s: body(s) | {"fc.weight": new(7, 512)}, "note", "has no bias", classes=7),
    Case("a replaced head", lambda s: body(s) | mlp("fc", 512, 64, 9), "note", "fc is no single linear layer on 512", classes=0),
    Case("a replaced head", lambda s: body(s) | {f"{n}.{p}": new(*((4, 512) if p == "weight" else (4,)))
                                                for n in ("head", "classifier") for p in ("weight", "bias")},
         "note", "none of them is the head for certain", classes=0),
    Case("a backbone without a head", body, "exact", classes=0),
    Case("kuangliu/pytorch-cifar", lambda s: renamed(kuangliu)(s | {"conv1.weight": np.broadcast_to(np.float32(1), (64, 3, 3, 3))}),
         "note", "linear is the head"),
    Case("weiaicunzai/pytorch-cifar100", renamed(weiaicunzai), "note", "weiaicunzai"),
    Case("weiaicunzai/pytorch-cifar100", renamed(weiaicunzai), "note", "weiaicunzai", architecture="resnet50"),
    Case("lightly, fastai", lambda s: prefixed("backbone.", renamed(children)(body(s))), "note", "children", classes=0),
    Case("lightly, fastai", lambda s: prefixed("0.", renamed(children)(body(s))) | {"1.8.weight": new(5, 512)}, "note", "dropped", classes=0),
    Case("Hugging Face", renamed(hugging_face), "note", "Hugging Face"),
    Case("Hugging Face", lambda s: {n.removeprefix("resnet."): a for n, a in renamed(hugging_face)(body(s)).items()},
         "note", "Hugging Face", classes=0),
    Case("Hugging Face", renamed(hugging_face), "note", "classifier.1 is the head", config=HF, file="model.safetensors"),
    Case("Hugging Face", renamed(hugging_face), "note", config=HF | {"hidden_act": "gelu"}, options=(("activation", "gelu"),)),
    Case("Hugging Face", renamed(hugging_face), "refused", "hidden_act is 'laplace'", config=HF | {"hidden_act": "laplace"}),
    Case("Hugging Face", renamed(hugging_face), "refused", "downsample_in_bottleneck = True", config=HF | {"downsample_in_bottleneck": True}),
    Case("Hugging Face", renamed(hugging_face), "refused", "downsample_in_first_stage", config=HF | {"downsample_in_first_stage": True}),
    Case("Hugging Face", renamed(hugging_face), "refused", "hidden_sizes", config=HF | {"hidden_sizes": [32, 64, 128, 256]}),
    Case("Hugging Face", renamed(hugging_face), "refused", "depths", config=HF | {"depths": [2, 2, 2]}),
    Case("Hugging Face", renamed(hugging_face), "refused", "num_channels = 1", config=HF | {"num_channels": 1}),
    Case("Hugging Face", renamed(hugging_face), "refused", "layer_type", config=HF | {"layer_type": "preactivation"}),
    Case("Hugging Face", renamed(hugging_face), "refused", "id2label", config=HF | {"id2label": {"0": 3}}),
    Case("Hugging Face", renamed(hugging_face), "refused", "embedding_size is nan", config=HF | {"embedding_size": float("nan")}),
    Case("Hugging Face", renamed(hugging_face), "refused", "model_type = 'vit'", config={"model_type": "vit"}),
    Case("timm", lambda s: s, config=TIMM),
    Case("timm", lambda s: s, config=TIMM | {"model_args": {"act_layer": "silu"}}, options=(("activation", "silu"),)),
    Case("timm", lambda s: s, config=R50 | {"num_features": 2048, "model_args": {"output_stride": 16}}, architecture="resnet50",
         options=(("output_stride", 16),)),
    Case("timm", lambda s: s, "refused", "architecture = 'resnetzz18'", config=TIMM | {"architecture": "resnetzz18"}),
    Case("timm", lambda s: s, "refused", "names a resnet34", config=TIMM | {"architecture": "resnet34"}),
    Case("timm", lambda s: s, "refused", "global_pool = 'max'", config=TIMM | {"global_pool": "max"}),
    Case("timm", lambda s: s, "refused", "num_classes = 10", config=TIMM | {"num_classes": 10}),
    Case("timm", lambda s: s, "refused", "model_args.block_args", config=TIMM | {"model_args": {"block_args": {"attn_layer": "x"}}}),
    Case("timm", lambda s: s, "refused", r"pretrained_cfg.mean is \[0.5\]", config=TIMM | {"pretrained_cfg": {"mean": "[0.5]"}}),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.std", config=TIMM | {"pretrained_cfg": {"std": [0.0, 1, 1]}}),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.crop_pct", config=TIMM | {"pretrained_cfg": {"crop_pct": float("inf")}}),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.crop_mode = 'squash'", config=TIMM | {"pretrained_cfg": {"crop_mode": "squash"}}),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.interpolation = 'lanczos'", config=TIMM | {"pretrained_cfg": {"interpolation": "lanczos"}}),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.input_size", config=TIMM | {"pretrained_cfg": {"input_size": [3, 224, 192]}}),
    Case("timm", lambda s: s, "refused", "is not JSON", config="{damaged"),
    Case("timm", lambda s: s, "refused", "holds a list", config=[1]),
    Case("a deep stem (resnet*d)", lambda s: DEEP_STEM | cut(r"^conv1\.", s), "refused", r"conv1\.0\.weight.*deep stem"),
    Case("mmpretrain, mmdetection", lambda s: {"meta": {}, "state_dict": head(prefixed("backbone.", body(s)) | {
        "head.fc.weight": new(6, 512), "head.fc.bias": new(6)}, "fc")}, "note", "head.fc is the head", classes=6),
    Case("mmpretrain, mmdetection", lambda s: prefixed("backbone.", body(s)) | {"neck.lateral_convs.0.conv.weight": new(256, 512, 1, 1),
         "bbox_head.cls.weight": new(9, 9)}, "note", "neck", classes=0),
    Case("detectron2", lambda s: renamed(detectron2)(uncounted(body(s))), "warning", "STRIDE_IN_1X1", architecture="resnet50", classes=0),
    Case("detectron2", lambda s: {"model": prefixed("backbone.bottom_up.", renamed(detectron2)(uncounted(body(s)))) | {
        "roi_heads.box_predictor.cls_score.weight": new(81, 1024)}}, "warning", "STRIDE_IN_1X1", architecture="resnet50", classes=0),
    Case("detectron2", lambda s: renamed(detectron2)(s), "note", "linear is the head"),
    Case("Caffe (Detectron 1, MSRA)", lambda s: {"blobs": {"res_conv1_bn_s": new(64), "res2_0_branch2a_w": new(64, 64, 1, 1)}},
         "refused", "Caffe's names"),
    Case("Caffe (Detectron 1, MSRA)", lambda s: s, "warning", "hints at Caffe", file="resnet50_caffe.pth", architecture="resnet50"),
    Case("VGGFace2", lambda s: body(s) | {"fc.weight": new(8631, 2048), "fc.bias": new(8631)}, "warning", "8631 classes",
         architecture="resnet50", classes=8631),
    Case("torchvision's segmentation networks", lambda s: prefixed("backbone.", body(s)) | {"classifier.0.weight": new(512, 2048, 3, 3),
         "classifier.4.weight": new(21, 512, 1, 1)}, "warning", "taken with output_stride=8", architecture="resnet50", classes=0,
         options=(("output_stride", 8),)),
    Case("torchvision's segmentation networks", lambda s: prefixed("backbone.", body(s)), "warning", "dilated", architecture="resnet50", classes=0),
    Case("torchvision's segmentation networks", body, "warning", "segmentation", file="fcn_resnet50_coco.pth", architecture="resnet50", classes=0),
    Case("torchvision's detection networks", lambda s: prefixed("backbone.body.", uncounted(body(s))) | {"backbone.fpn.inner_blocks.0.weight":
         new(256, 256, 1, 1)}, "warning", "epsilon is 0", architecture="resnet50", classes=0),
    Case("torchvision's detection networks", lambda s: prefixed("backbone.body.", uncounted(body(s))), "warning", "epsilon 0",
         file="fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", architecture="resnet50", classes=0, options=(("norm_epsilon", 0.0),)),
    Case("DETR", lambda s: {"model": prefixed("backbone.0.body.", uncounted(body(s))) | {"query_embed.weight": new(100, 256)}},
         "warning", "1e-5", architecture="resnet50", classes=0),
    Case("MoCo", lambda s: {"state_dict": prefixed("module.encoder_q.", body(s) | mlp("fc", 512, 8, 4)) | prefixed("module.encoder_k.",
         copies(body(s))) | {"module.queue": new(4, 8), "module.queue_ptr": np.zeros(1, np.int64)}}, "refused", "encoder_q.*encoder_k.*--prefix"),
    Case("MoCo", lambda s: {"state_dict": prefixed("module.encoder_q.", body(s) | mlp("fc", 512, 8, 4)) | prefixed("module.encoder_k.",
         copies(body(s))) | {"module.queue": new(4, 8)}}, "note", "fc is no single linear layer", prefix="module.encoder_q", classes=0),
    Case("SimCLR", lambda s: prefixed("backbone.", body(s)) | mlp("projector", 512, 512, 128), "note", "projector", classes=0),
    Case("SimSiam", lambda s: prefixed("encoder.", body(s) | mlp("fc", 512, 64, 64)) | mlp("predictor", 64, 16, 64), "note", "predictor", classes=0),
    Case("SwAV", lambda s: prefixed("module.", body(s)) | prefixed("module.", mlp("projection_head", 512, 64, 128) | {
        "prototypes.weight": new(3000, 128)}), "note", "prototypes", classes=0),
    Case("BYOL", lambda s: prefixed("online_encoder.net.", body(s)) | prefixed("target_encoder.net.", copies(body(s))), "refused",
         "'online_encoder.net.', 'target_encoder.net.'"),
    Case("BYOL", lambda s: prefixed("online_encoder.net.", body(s)) | prefixed("target_encoder.net.", copies(body(s))), "note",
         "online_encoder", prefix="online_encoder", classes=0),
    Case("Barlow Twins", lambda s: prefixed("module.backbone.", body(s)) | mlp("module.projector", 512, 64, 64) | {"module.bn.running_mean": new(64)},
         "note", "module.projector", classes=0),
    Case("VICReg", lambda s: {"model": prefixed("module.backbone.", body(s)) | mlp("module.projector", 512, 64)}, "note", "projector", classes=0),
    Case("DINO", lambda s: {"student": prefixed("module.backbone.", body(s)), "teacher": prefixed("backbone.", copies(body(s))), "epoch": 3,
         "dino_loss": {"center": new(1, 9)}}, "refused", "'student.module.backbone.', 'teacher.backbone.'"),
    Case("DINO", lambda s: {"student": prefixed("module.backbone.", body(s)), "teacher": prefixed("backbone.", copies(body(s))), "epoch": 3},
         "note", "prefix 'teacher.backbone.'", prefix="teacher", classes=0),
    Case("a tied network", lambda s: body(s) | prefixed("backbone.", body(s)), "note", classes=0),
    Case("pycls", lambda s: {"model_state": renamed(pycls)(s), "epoch": 1}, "note", "head.fc is the head", architecture="resnet50"),
    Case("the Residual networks", renamed(residual_blocks), "note", "Residual blocks", architecture="residual18", classes=10),
    Case("the Residual networks", renamed(residual_sequential), "note", "Residual Sequential", architecture="residual18", classes=10),
    Case("BatchNorm folded into convolutions", folded, "warning", "folded into the convolutions", options=(("norm_epsilon", 0.0),)),
    Case("Linen's example", linen_example, "warning", "SAME", file="params.msgpack"),
    Case("Linen's example", linen_example, "warning", "SAME", file="params.msgpack", architecture="resnet50"),
    Case("jax-resnet", jax_resnet, "note", "jax-resnet", file="params.msgpack"),
    Case("jax-resnet", jax_resnet, "note", "jax-resnet", file="params.msgpack", architecture="resnet50"),
    Case("haiku", haiku, "warning", "SAME", file="params.npz"),
    Case("big_vision's BiT", lambda s: {"params.root_block.conv_root.kernel": new(7, 7, 3, 64), "params.block1.unit1.conv1.kernel": new(1, 1, 64, 64)},
         "refused", "standardised convolutions"),
    Case("CLIP", lambda s: prefixed("visual.", body(s)) | {"visual.attnpool.positional_embedding": new(50, 2048)}, "refused", "attention pool"),
    Case("3-D and 1-D networks", lambda s: {n: np.broadcast_to(np.float32(1), (*a.shape, 3)) if a.ndim == 4 else a for n, a in s.items()},
         "refused", "3-D network"),
    Case("3-D and 1-D networks", lambda s: {n: a[..., 0] if a.ndim == 4 else a for n, a in s.items()}, "refused", "1-D network"),
    Case("attention in the blocks", lambda s: s | {"layer1.0.se.fc1.weight": new(4, 64, 1, 1)}, "refused", "squeeze-and-excitation"),
    Case("attention in the blocks", lambda s: s | {"layer1.0.ca.fc1.weight": new(4, 64, 1, 1)}, "refused", "CBAM"),
    Case("blur-pooling", lambda s: s | {"layer2.0.downsample.2.filt": new(128, 1, 3, 3)}, "refused", "blur-pooling"),
    Case("GroupNorm", lambda s: cut("running|tracked", s), "refused", "norms without statistics"),
    Case("quantised weights", lambda s: s | {"layer1.0.conv1.weight_scale": new(64)}, "refused", "quantised"),
    Case("LoRA", lambda s: s | {"layer1.0.conv1.lora_A.weight": new(4, 64)}, "refused", "LoRA"),
    Case("CIFAR networks of three stages", lambda s: cut(r"^layer4", s), "refused", "three stages"),
    Case("entries inside a block", lambda s: s | {"layer1.0.gate": new(1)}, "refused", r"layer1\.0\.gate"),
    Case("another network", lambda s: {"features.0.weight": new(64, 3, 3, 3)}, "refused", "no naming scheme"),
    Case("another network", lambda s: {"cls_token": new(1, 1, 768), "pos_embed": new(1, 197, 768)}, "refused", "transformer"),
    Case("file names that hint at arithmetic", lambda s: s, "warning", "anti-aliasing", file="resnet50_blur.pth", architecture="resnet50"),
    Case("file names that hint at arithmetic", lambda s: s, "warning", "detection network", file="maskrcnn_r50.pth", architecture="resnet50"),
    Case("file names that hint at arithmetic", lambda s: s, "warning", "another activation", file="resnet18_silu.pth"),
]  # fmt: skip


def read(case: Case, folder: Path) -> Weights:
    if case.config is not None:
        text = case.config if isinstance(case.config, str) else json.dumps(case.config)
        (folder / "config.json").write_text(text)
    path = folder / case.file
    content = case.make(numbered(case.architecture))
    tensors, notes = unnested(content, path, lambda value: isinstance(value, np.ndarray))
    return from_checkpoint(Checkpoint(tensors, notes=notes), path, case.prefix)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.text or case.outcome}")
def test_a_layout(case, tmp_path):
    if case.outcome == "refused":
        with pytest.raises(UsageError, match=f"(?s){case.text}") as raised:
            read(case, tmp_path).to_model()
        assert "cut short" not in str(raised.value)
        assert "damaged" not in str(raised.value)
        return
    weights = read(case, tmp_path)
    warnings = [str(note) for note in weights.warnings() if note.is_warning]
    if case.outcome == "warning":
        assert any(re.search(case.text, text) for text in warnings), warnings
    else:
        assert not warnings
        notes = [str(note) for note in weights.notes]
        assert not case.text or any(re.search(case.text, note) for note in notes), notes
    assert weights.options == dict(case.options)
    assert weights.identity.architecture == case.architecture
    assert weights.identity.num_classes == case.classes
    _assert_in_place(weights, numbered(case.architecture))


def _assert_in_place(weights: Weights, expected: Arrays) -> None:
    """Every entry of the network is there, and holds its own number."""
    wanted = body(expected) if weights.identity.num_classes == 0 else expected
    missing = {name for name in wanted if name not in weights.state_dict and not name.endswith("tracked")}
    assert not missing
    assert not weights.state_dict.keys() - expected.keys()
    is_folded = any("folded" in str(note) for note in weights.notes)
    for name, array in weights.state_dict.items():
        if name.startswith("fc.") or (is_folded and array.ndim == 1):
            continue
        assert array.flat[0] == array.flat[-1] == expected[name].flat[0], name
        assert array.shape == expected[name].shape or name == "conv1.weight", name


def test_the_documentation_has_a_row_for_every_kind():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (exact|note|warning|refused)[^|]* \|", text, re.MULTILINE))
    outcomes: dict[str, set[str]] = {}
    for case in CASES:
        outcomes.setdefault(case.kind, set()).add(case.outcome)
    assert rows.keys() == outcomes.keys()
    for kind, outcome in rows.items():
        assert outcome in outcomes[kind], kind


def test_the_table_is_long():
    assert len(CASES) >= 90
