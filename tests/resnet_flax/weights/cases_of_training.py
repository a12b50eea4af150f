"""What training scripts, wrappers and self-supervised methods make of a ResNet."""

import numpy as np

from tests.resnet_flax.weights.cases import (
    Case,
    body,
    copies,
    folded,
    head,
    inserted,
    mlp,
    new,
    prefixed,
    uncounted,
)

CASES = [
    Case("torchvision", lambda s: s),
    Case("PyTorch 0.4", uncounted, "note", "no num_batches_tracked"),
    Case(
        "DistributedDataParallel",
        lambda s: {"state_dict": prefixed("module.", s), "epoch": 3},
        "note",
        "took the entry",
    ),
    Case("torch.compile", lambda s: prefixed("_orig_mod.", s), "note", "prefix '_orig_mod.'"),
    Case("torch.compile", inserted("_orig_mod")),
    Case("torch.compile", lambda s: prefixed("module.", inserted("_orig_mod")(s)), "note", "prefix 'module.'"),
    Case("activation checkpointing, FSDP", inserted("_checkpoint_wrapped_module")),
    Case("activation checkpointing, FSDP", inserted("_fsdp_wrapped_module._checkpoint_wrapped_module")),
    Case(
        "AveragedModel (EMA, SWA)",
        lambda s: {"model_ema": prefixed("module.", s) | {"n_averaged": np.ones((), np.int64)}},
        "note",
        "dropped what is not part .*n_averaged",
    ),
    Case(
        "AveragedModel (EMA, SWA)",
        lambda s: {"model": s, "model_ema": copies(s)},
        "refused",
        "'model.', 'model_ema.'.*--prefix",
    ),
    Case(
        "AveragedModel (EMA, SWA)",
        lambda s: {"model": s, "model_ema": copies(s)},
        "note",
        "hold tensors",
        prefix="model_ema",
    ),
    Case(
        "THOP",
        lambda s: s | {"total_ops": new(1), "layer1.0.total_ops": new(1), "layer1.0.conv1.total_params": new(1)},
        "note",
        "dropped what is not part",
    ),
    Case(
        "an optimiser beside it",
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": new(9, 9)}}, "param_groups": []}},
        "note",
        "dropped optimizer",
    ),
    Case("an unknown wrapper", lambda s: {"model_state": s, "epoch": 1}, "note", "took the entry 'model_state'"),
    Case("an unknown wrapper", lambda s: {"network": {"backbone": s}}, "note", "took the entry 'backbone'"),
    Case(
        "an unknown wrapper",
        lambda s: {"params_ema": s, "metrics": {"top1": new(), "confusion": new(9, 9)}},
        "note",
        "params_ema",
    ),
    Case(
        "criteria, metrics and normalisers",
        lambda s: prefixed("model.", s) | {"criterion.weight": new(1000)},
        "note",
        "criterion",
    ),
    Case(
        "criteria, metrics and normalisers",
        lambda s: prefixed("net.", s) | {"val_acc.tp": new(9), "val_acc.fp": new(9)},
        "note",
        "val_acc",
    ),
    Case(
        "criteria, metrics and normalisers",
        lambda s: prefixed("model.", s) | {"normalize.mean": new(3), "normalize.std": new(3)},
        "warning",
        "normalises images with itself",
    ),
    Case("a list of parameters", lambda s: list(s.values()), "refused", "122 tensors have no names"),
    Case("a list of parameters", lambda s: {"params": list(s.values())}, "refused", "save model.state_dict"),
    Case(
        "Lightning",
        lambda s: {
            "state_dict": prefixed("model.", s),
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [],
            "callbacks": {"ckpt": {"best": new()}},
        },
        "note",
        "prefix 'model.'",
    ),
    Case("Lightning", lambda s: {"state_dict": prefixed("net.", head(s, "fc.1"))}, "note", "net.fc.1 is the head"),
    Case(
        "Lightning",
        lambda s: {
            "state_dict": prefixed("backbone.", body(s)) | {"classifier.weight": new(5, 512), "classifier.bias": new(5)}
        },
        "note",
        "classifier is the head",
        classes=5,
    ),
    Case("a replaced head", lambda s: head(s, "fc.1"), "note", "fc.1 is the head"),
    Case("a replaced head", lambda s: head(s, "last_linear"), "note", "last_linear is the head"),
    Case("a replaced head", lambda s: head(s, "classifier.1"), "note", "classifier.1 is the head"),
    Case("a replaced head", lambda s: head(s, "head.fc"), "note", "head.fc is the head"),
    Case("a replaced head", lambda s: body(s) | {"fc.weight": new(7, 512)}, "note", "has no bias", classes=7),
    Case(
        "a replaced head",
        lambda s: body(s) | mlp("fc", 512, 64, 9),
        "note",
        "fc is not a single linear layer on 512",
        classes=0,
    ),
    Case(
        "a replaced head",
        lambda s: (
            body(s)
            | {
                f"{n}.{p}": new(*((4, 512) if p == "weight" else (4,)))
                for n in ("head", "classifier")
                for p in ("weight", "bias")
            }
        ),
        "note",
        "none is the head for certain",
        classes=0,
    ),
    Case(
        "a replaced head",
        lambda s: body(s) | {"fc.weight": new(64, 512), "fc.bias": new(64), "fc2.weight": new(9, 64)},
        "note",
        "fc2 takes what the linear layer gives",
        classes=0,
    ),
    Case(
        "a replaced head",
        lambda s: prefixed("base.", body(s)) | {"neck.running_mean": new(512), "classifier.weight": new(9, 512)},
        "note",
        "neck normalises the features before",
        classes=0,
    ),
    Case("a backbone without a head", body, "exact", classes=0),
    Case(
        "MoCo",
        lambda s: {
            "state_dict": prefixed("module.encoder_q.", body(s) | mlp("fc", 512, 8, 4))
            | prefixed("module.encoder_k.", copies(body(s)))
            | {"module.queue": new(4, 8), "module.queue_ptr": np.zeros(1, np.int64)}
        },
        "refused",
        "encoder_q.*encoder_k.*--prefix",
    ),
    Case(
        "MoCo",
        lambda s: {
            "state_dict": prefixed("module.encoder_q.", body(s) | mlp("fc", 512, 8, 4))
            | prefixed("module.encoder_k.", copies(body(s)))
            | {"module.queue": new(4, 8)}
        },
        "note",
        "fc is not a single linear layer",
        prefix="module.encoder_q",
        classes=0,
    ),
    Case(
        "SimCLR",
        lambda s: prefixed("backbone.", body(s)) | mlp("projector", 512, 512, 128),
        "note",
        "projector",
        classes=0,
    ),
    Case(
        "SimSiam",
        lambda s: prefixed("encoder.", body(s) | mlp("fc", 512, 64, 64)) | mlp("predictor", 64, 16, 64),
        "note",
        "predictor",
        classes=0,
    ),
    Case(
        "SwAV",
        lambda s: (
            prefixed("module.", body(s))
            | prefixed("module.", mlp("projection_head", 512, 64, 128) | {"prototypes.weight": new(3000, 128)})
        ),
        "note",
        "prototypes",
        classes=0,
    ),
    Case(
        "BYOL",
        lambda s: prefixed("online_encoder.net.", body(s)) | prefixed("target_encoder.net.", copies(body(s))),
        "refused",
        "'online_encoder.net.', 'target_encoder.net.'",
    ),
    Case(
        "BYOL",
        lambda s: prefixed("online_encoder.net.", body(s)) | prefixed("target_encoder.net.", copies(body(s))),
        "note",
        "online_encoder",
        prefix="online_encoder",
        classes=0,
    ),
    Case(
        "Barlow Twins",
        lambda s: (
            prefixed("module.backbone.", body(s))
            | mlp("module.projector", 512, 64, 64)
            | {"module.bn.running_mean": new(64)}
        ),
        "note",
        "module.projector",
        classes=0,
    ),
    Case(
        "VICReg",
        lambda s: {"model": prefixed("module.backbone.", body(s)) | mlp("module.projector", 512, 64)},
        "note",
        "projector",
        classes=0,
    ),
    Case(
        "DINO",
        lambda s: {
            "student": prefixed("module.backbone.", body(s)),
            "teacher": prefixed("backbone.", copies(body(s))),
            "epoch": 3,
            "dino_loss": {"center": new(1, 9)},
        },
        "refused",
        "'student.backbone.', 'teacher.backbone.'",
    ),
    Case(
        "DINO",
        lambda s: {
            "student": prefixed("module.backbone.", body(s)),
            "teacher": prefixed("backbone.", copies(body(s))),
            "epoch": 3,
        },
        "note",
        "prefix 'teacher.backbone.'",
        prefix="teacher",
        classes=0,
    ),
    Case("a tied network", lambda s: body(s) | prefixed("backbone.", body(s)), "note", classes=0),
    Case(
        "BatchNorm folded into convolutions",
        folded,
        "warning",
        "folded into the convolutions",
        options=(("norm_epsilon", 0.0),),
    ),
]
