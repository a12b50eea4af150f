"""config.json beside the weights, of timm and of Hugging Face."""

from tests.resnet_flax.weights.cases import Case, body, renamed
from tests.resnet_flax.weights.others import hugging_face

R50 = {"architecture": "resnet50"}
TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]},
}
HF = {"model_type": "resnet", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}


CASES = [
    Case("Hugging Face", renamed(hugging_face), "note", "Hugging Face"),
    Case(
        "Hugging Face",
        lambda s: {n.removeprefix("resnet."): a for n, a in renamed(hugging_face)(body(s)).items()},
        "note",
        "Hugging Face",
        classes=0,
    ),
    Case(
        "Hugging Face", renamed(hugging_face), "note", "classifier.1 is the head", config=HF, file="model.safetensors"
    ),
    # transformers has ReLU inside the blocks whatever hidden_act is
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "hidden_act = 'gelu'.*and ReLU inside the blocks",
        config=HF | {"hidden_act": "gelu"},
    ),
    Case("Hugging Face", renamed(hugging_face), "note", config=HF | {"hidden_act": "relu"}),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "hidden_act is 'laplace'",
        config=HF | {"hidden_act": "laplace"},
    ),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "note",
        config={"model_type": "resnet", "depths": [2, 2, 2, 2], "downsample_in_bottleneck": True},
        architecture="resnet26",
        options=(("stride_in_first_1x1", True),),
    ),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "downsample_in_bottleneck is 1, not true or false",
        config=HF | {"downsample_in_bottleneck": 1},
    ),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "downsample_in_first_stage",
        config=HF | {"downsample_in_first_stage": True},
    ),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "hidden_sizes",
        config=HF | {"hidden_sizes": [32, 64, 128, 256]},
    ),
    Case("Hugging Face", renamed(hugging_face), "refused", "depths", config=HF | {"depths": [2, 2, 2]}),
    Case("Hugging Face", renamed(hugging_face), "refused", "num_channels = 1", config=HF | {"num_channels": 1}),
    Case("Hugging Face", renamed(hugging_face), "refused", "layer_type", config=HF | {"layer_type": "preactivation"}),
    Case("Hugging Face", renamed(hugging_face), "refused", "id2label", config=HF | {"id2label": {"0": 3}}),
    Case(
        "Hugging Face",
        renamed(hugging_face),
        "refused",
        "embedding_size is nan",
        config=HF | {"embedding_size": float("nan")},
    ),
    Case("Hugging Face", renamed(hugging_face), "refused", "model_type = 'vit'", config={"model_type": "vit"}),
    Case("timm", lambda s: s, config=TIMM),
    Case("timm", lambda s: s, config=TIMM | {"model_args": {"act_layer": "silu"}}, options=(("activation", "silu"),)),
    Case(
        "timm",
        lambda s: s,
        config=R50 | {"num_features": 2048, "model_args": {"output_stride": 16}},
        architecture="resnet50",
        options=(("output_stride", 16),),
    ),
    Case("timm", lambda s: s, "refused", "architecture = 'resnetzz18'", config=TIMM | {"architecture": "resnetzz18"}),
    Case("timm", lambda s: s, "refused", "names resnet34", config=TIMM | {"architecture": "resnet34"}),
    Case("timm", lambda s: s, config=TIMM | {"global_pool": "fastmax"}, options=(("global_pool", "max"),)),
    Case("timm", lambda s: s, "refused", "global_pool = 'attn'", config=TIMM | {"global_pool": "attn"}),
    Case(
        "timm",
        lambda s: s,
        config=TIMM | {"architecture": "resnetblur18"},
        file="model.safetensors",
        architecture="resnetblur18",
    ),
    Case(
        "timm",
        lambda s: s,
        config=TIMM | {"model_args": {"aa_layer": "avgpool", "output_stride": 32}},
        options=(("aa_layer", "avg"),),
    ),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "model_args.aa_layer = 'blurpc'",
        config=TIMM | {"model_args": {"aa_layer": "blurpc"}},
    ),
    Case("timm", lambda s: s, "refused", "model_args.stem_type", config=TIMM | {"model_args": {"stem_type": "deep"}}),
    Case("timm", lambda s: s, "refused", "num_classes = 10", config=TIMM | {"num_classes": 10}),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "model_args.block_args",
        config=TIMM | {"model_args": {"block_args": {"attn_layer": "x"}}},
    ),
    Case(
        "timm",
        lambda s: s,
        "refused",
        r"pretrained_cfg.mean is '\[0.5\]'",
        config=TIMM | {"pretrained_cfg": {"mean": "[0.5]"}},
    ),
    Case("timm", lambda s: s, "refused", "pretrained_cfg.std", config=TIMM | {"pretrained_cfg": {"std": [0.0, 1, 1]}}),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "pretrained_cfg.crop_pct",
        config=TIMM | {"pretrained_cfg": {"crop_pct": float("inf")}},
    ),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "pretrained_cfg.crop_mode = 'squash'",
        config=TIMM | {"pretrained_cfg": {"crop_mode": "squash"}},
    ),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "pretrained_cfg.interpolation = 'lanczos'",
        config=TIMM | {"pretrained_cfg": {"interpolation": "lanczos"}},
    ),
    Case(
        "timm",
        lambda s: s,
        "refused",
        "pretrained_cfg.input_size",
        config=TIMM | {"pretrained_cfg": {"input_size": [3, 224, 192]}},
    ),
    Case("timm", lambda s: s, "refused", "is not JSON", config="{damaged"),
    Case("timm", lambda s: s, "refused", "holds a list", config=[1]),
]
