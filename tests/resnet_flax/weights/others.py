"""Others' names for the entries of a ResNet, from torchvision's, written out from their authors' module trees."""

import re
from collections.abc import Callable

import numpy as np

from resnet_flax.weights.entries import entries

Arrays = dict[str, np.ndarray]


def _started(name: str, replacements: dict[str, str]) -> str:
    for start, theirs in replacements.items():
        if name.startswith(start):
            return theirs + name.removeprefix(start)
    return name


def hugging_face(name: str) -> str:
    """transformers' `ResNetForImageClassification`."""
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name):
        stage, block, rest = int(match[1]) - 1, match[2], match[3]
        rest = rest.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
        rest = re.sub(r"conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", rest)
        rest = re.sub(r"bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", rest)
        return f"resnet.encoder.stages.{stage}.layers.{block}.{rest}"
    name = re.sub(r"^conv1", "resnet.embedder.embedder.convolution", name)
    name = re.sub(r"^bn1", "resnet.embedder.embedder.normalization", name)
    return re.sub(r"^fc", "classifier.1", name)


def residual_blocks(name: str) -> str:
    return _started(name, {"conv1": "0", "bn1": "1", "fc": "fc.1", "layer": "resnet_block"})


def residual_sequential(name: str) -> str:
    return _started(name, {"conv1": "0.0", "bn1": "0.1", "fc": "7", "layer": ""})


def children(name: str) -> str:
    """`nn.Sequential(*list(resnet.children()))`."""
    if match := re.fullmatch(r"layer(\d)\.(.*)", name):
        return f"{int(match[1]) + 3}.{match[2]}"
    return _started(name, {"conv1": "0", "bn1": "1", "fc": "9"})


def detectron2(name: str) -> str:
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name):
        rest = re.sub(r"bn(\d)", r"conv\1.norm", match[3])
        rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        return f"res{int(match[1]) + 1}.{match[2]}.{rest}"
    return _started(name, {"conv1": "stem.conv1", "bn1": "stem.conv1.norm", "fc": "linear"})


def weiaicunzai(name: str) -> str:
    """weiaicunzai/pytorch-cifar100's resnet.py: residual_function = Sequential(conv, bn, relu, conv, bn, ...)."""
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name):
        rest = re.sub(r"conv(\d)", lambda m: f"residual_function.{3 * (int(m[1]) - 1)}", match[3])
        rest = re.sub(r"bn(\d)", lambda m: f"residual_function.{3 * (int(m[1]) - 1) + 1}", rest)
        return f"conv{int(match[1]) + 1}_x.{match[2]}.{rest.replace('downsample', 'shortcut')}"
    return _started(name, {"conv1": "conv1.0", "bn1": "conv1.1"})


def kuangliu(name: str) -> str:
    return _started(name.replace("downsample", "shortcut"), {"fc": "linear"})


def openmmlab(name: str) -> str:
    """mmpretrain's ResNetV1c and ResNetV1d: a Sequential for the whole stem."""
    return re.sub(r"^conv1\.", "stem.", re.sub(r"^bn1\.", "stem.7.", name))


def pycls(name: str) -> str:
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name):
        rest = re.sub(r"conv(\d)", lambda m: f"f.{'abc'[int(m[1]) - 1]}", match[3])
        rest = re.sub(r"bn(\d)", lambda m: f"f.{'abc'[int(m[1]) - 1]}_bn", rest)
        rest = rest.replace("downsample.0", "proj").replace("downsample.1", "bn")
        return f"s{match[1]}.b{int(match[2]) + 1}.{rest}"
    return _started(name, {"conv1": "stem.conv", "bn1": "stem.bn", "fc": "head.fc"})


SCHEMES: dict[str, Callable[[str], str]] = {
    "torchvision": lambda name: name,
    "Hugging Face": hugging_face,
    "Residual blocks": residual_blocks,
    "Residual Sequential": residual_sequential,
    "a Sequential of torchvision's children (lightly, fastai)": children,
    "detectron2": detectron2,
    "weiaicunzai/pytorch-cifar100": weiaicunzai,
    "pycls": pycls,
}

_LEAF = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _block_numbers(names) -> dict[str, int]:
    blocks = dict.fromkeys(match[0] for name in names if (match := re.match(r"layer\d\.\d+", name)))
    return {block: number for number, block in enumerate(blocks)}


def _flax_tree(state: Arrays, module_of: Callable[[str], str]) -> Arrays:
    """Linen's variables, flattened: params/module/kernel in (h, w, I, O), batch_stats/module/mean."""
    tree = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        collection = "batch_stats" if leaf.startswith("running") else "params"
        kernel = array.ndim > 1
        theirs = "scale" if leaf == "weight" and not kernel else _LEAF[leaf]
        value = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        tree[f"{collection}.{module_of(module)}.{theirs}"] = value
    return tree


def hugging_face_flax(state: Arrays) -> Arrays:
    """transformers' `FlaxResNetForImageClassification`, whose modules are called as in PyTorch."""
    return _flax_tree(state, lambda module: hugging_face(f"{module}.").removesuffix("."))


def linen_example(state: Arrays) -> Arrays:
    """flax/examples/imagenet/models.py."""
    numbers = _block_numbers(state)
    kind = "BottleneckResNetBlock" if any("conv3" in name for name in state) else "ResNetBlock"

    def module_of(module: str) -> str:
        if match := re.fullmatch(r"(layer\d\.\d+)\.(.*)", module):
            part = {"downsample.0": "conv_proj", "downsample.1": "norm_proj"}.get(match[2])
            if part is None:
                part = f"{'Conv' if 'conv' in match[2] else 'BatchNorm'}_{int(match[2][-1]) - 1}"
            return f"{kind}_{numbers[match[1]]}.{part}"
        return {"conv1": "conv_init", "bn1": "bn_init", "fc": "Dense_0"}[module]

    return _flax_tree(state, module_of)


def jax_resnet(state: Arrays) -> Arrays:
    """n2cholas/jax-resnet: a Sequential of stem, pool, blocks, mean, Dense."""
    numbers = _block_numbers(state)

    def module_of(module: str) -> str:
        if match := re.fullmatch(r"(layer\d\.\d+)\.(.*)", module):
            if match[2].startswith("downsample"):
                part = f"ResNetSkipConnection_0.ConvBlock_0.{('Conv_0', 'BatchNorm_0')[int(match[2][-1])]}"
            else:
                part = f"ConvBlock_{int(match[2][-1]) - 1}.{'Conv_0' if 'conv' in match[2] else 'BatchNorm_0'}"
            return f"layers_{numbers[match[1]] + 2}.{part}"
        if module == "fc":
            return f"layers_{len(numbers) + 3}"
        return f"layers_0.ConvBlock_0.{'Conv_0' if module == 'conv1' else 'BatchNorm_0'}"

    return _flax_tree(state, module_of)


def haiku(state: Arrays) -> Arrays:
    """dm-haiku's hk.nets.ResNet, parameters and moving averages in one dict."""
    leaves = {"running_mean": "/~/mean_ema.average", "running_var": "/~/var_ema.average", "bias": ".offset"}
    tree = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        is_norm = "bn" in module or module.endswith("downsample.1")
        if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", module):
            part = match[3].replace("downsample.0", "shortcut_conv").replace("downsample.1", "shortcut_batchnorm")
            part = re.sub(r"^conv(\d)", lambda m: f"conv_{int(m[1]) - 1}", part)
            part = re.sub(r"^bn(\d)", lambda m: f"batchnorm_{int(m[1]) - 1}", part)
            place = f"block_group_{int(match[1]) - 1}/~/block_{match[2]}/~/{part}"
        else:
            place = {"conv1": "initial_conv", "bn1": "initial_batchnorm", "fc": "logits"}[module]
        if is_norm:
            value = array.reshape(1, 1, 1, -1)
            place += leaves.get(leaf, ".scale")
        else:
            value = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            place += ".w" if leaf == "weight" else ".b"
        tree[f"res_net18/~/{place}".replace("/", ".")] = value
    return tree


def numbered(architecture: str, **sizes: tuple[int, ...]) -> Arrays:
    """Every entry of an architecture, filled with its own number: megabytes of shapes in a few bytes."""
    shapes = dict(entries(architecture)) | {name.replace("_", "."): shape for name, shape in sizes.items()}
    return {
        name: np.broadcast_to(np.int64(i) if name.endswith("tracked") else np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items(), 1)
    }
