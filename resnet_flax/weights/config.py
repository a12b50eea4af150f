"""The config.json beside weights, timm's or Hugging Face's: checked and obeyed, or refused by the field's name."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.conversion.files import read_regular
from resnet_flax.data.preprocessing import LARGEST, Preprocessing
from resnet_flax.data.transforms import RESAMPLING, EvaluationTransform, Interpolation
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES, BasicBlock, Bottleneck, get_architecture
from resnet_flax.weights.arithmetic import activation_named
from resnet_flax.weights.identify import Identity
from resnet_flax.weights.published import imagenet_classes

LARGEST_CONFIG = 2**24  # bytes


@dataclass(frozen=True)
class Config:
    """What a config.json determines; None and empty where it leaves something open.

    Attributes:
        path: of the file.
        architecture: a name in `ARCHITECTURES`.
        options: as `resnet_flax.weights.arithmetic` has them.
        expected: {field: (attribute of `Identity`, value)} that the weights have to agree with.
        preprocessing, class_names: of the images and of the logits.
    """

    path: Path
    architecture: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, tuple[str, int]] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None

    def require(self, identity: Identity) -> None:
        """Raises UserError where the weights are of another network than the config."""
        for name, (attribute, value) in self.expected.items():
            found = getattr(identity, attribute)
            if attribute == "num_classes" and found == 0:
                continue  # a backbone without its head
            if found != value:
                raise UserError(f"{self.path} has {name} = {value}, but the weights next to it have {found}")
        if self.preprocessing and (count := len(self.preprocessing.mean)) not in (1, 3, identity.in_channels):
            raise UserError(f"{self.path} has a mean of {count} channels for images of {identity.in_channels}")
        if self.architecture and not get_architecture(self.architecture).has_shapes_of(
            get_architecture(identity.architecture)
        ):
            raise UserError(
                f"{self.path} names {self.architecture}, but the weights next to it are those of {identity}"
            )


def read_config(folder: Path) -> Config | None:
    """The config.json in a folder; None if there is none, or it is another program's.

    Raises:
        UserError: if it is damaged, or asks for something that no network here has.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    content = _json(path)
    if "architecture" in content and (
        "pretrained_cfg" in content or "model_args" in content or "num_features" in content
    ):
        return _timm(Fields(path, content))
    if content.get("model_type") == "resnet" or any("ResNet" in str(name) for name in _list(content, "architectures")):
        return _hugging_face(Fields(path, content))
    if isinstance(content.get("model_type"), str):
        raise UserError(
            f"{path} has model_type = {content['model_type']!r}, not 'resnet'; if the weights next to it contain one, "
            "move them to a folder of their own"
        )
    if "id2label" in content:
        return _hugging_face(Fields(path, content))
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); repair it, or move it away from the weights") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a JSON object")
    return content


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    return value if isinstance(value, list) else []


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9  # NaN is not below anything


class Fields:
    """Typed access to the fields of a JSON object; each error names the file and the field."""

    def __init__(self, path: Path, content: Mapping[str, Any], lead: str = ""):
        self.path, self.content, self.lead = path, content, lead

    def error(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.path}: {self.lead}{name} is {self.content.get(name)!r:.80}, not {expected}")

    def lacks(self, name: str, way_on: str = "") -> UserError:
        text = f"{self.path} asks for {self.lead}{name} = {self.content.get(name)!r:.80}, which no network here has"
        return UserError(text + (f"; {way_on}" if way_on else ""))

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        value = self.content.get(name)
        if value is None:
            return default
        if not _is_finite(value):
            raise self.error(name, "a finite number")
        if not low <= value <= high:
            raise self.error(name, f"between {low:g} and {high:g}")
        return value

    def integer(self, name: str) -> int | None:
        value = self.content.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise self.error(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.content.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, "true or false")
        return bool(value)

    def numbers(
        self, name: str, default: tuple[float, ...] | None = None, count: int | None = None
    ) -> tuple[float, ...]:
        value = self.content.get(name)
        if value is None and default is not None:
            return default
        if (
            not isinstance(value, list)
            or not value
            or not all(map(_is_finite, value))
            or (count is not None and len(value) != count)
        ):
            raise self.error(name, f"a list of {count or 'finite'} {'finite ' if count else ''}numbers")
        return tuple(value)

    def choice(self, name: str) -> str:
        """What a name in `_CHOICES` is called here."""
        value = self.content.get(name)
        if not isinstance(value, str):
            raise self.error(name, "a string")
        if value not in _CHOICES[name]:
            raise self.lacks(name, f"there are {', '.join(_CHOICES[name])}")
        return _CHOICES[name][value]

    def inside(self, name: str) -> "Fields":
        value = self.content.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "a JSON object")
        return Fields(self.path, value or {}, f"{self.lead}{name}.")


def _mean_std(fields: Fields, mean: str, std: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    imagenet = Preprocessing()
    means = fields.numbers(mean, imagenet.mean)
    stds = fields.numbers(std, imagenet.std, len(means))
    if min(stds) <= 0:
        raise fields.error(std, "a list of numbers above 0")
    return means, stds


# timm: pretrained_cfg, whose defaults are those of timm.data.resolve_data_config.

_TRAINING_ONLY = frozenset(
    ("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "pretrained", "scriptable")
)


# timm's names of pools and anti-aliasing; "fast" pools compute the same. Others change the shapes, and are in the rows.
_CHOICES = {
    "global_pool": {f"{fast}{pool}": pool for fast in ("", "fast") for pool in ("avg", "max", "avgmax", "catavgmax")}
    | {"fast": "avg"},
    "aa_layer": {"avg": "avg", "avgpool": "avg", "blur": "blur", "blurpool": "blur"},
}


def _timm(fields: Fields) -> Config:
    architecture = fields.content["architecture"]
    name = architecture.partition(".")[0] if isinstance(architecture, str) else architecture
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise fields.lacks("architecture", "`python -m resnet_flax models` lists those that are here")
    options: dict[str, Any] = {}
    if fields.content.get("global_pool") is not None:
        options["global_pool"] = fields.choice("global_pool")
    expected: dict[str, tuple[str, int]] = {}
    arguments = fields.inside("model_args")
    for key, value in arguments.content.items():
        if value is None or key in _TRAINING_ONLY:
            continue
        if key == "act_layer":
            options["activation"] = activation_named(value, f"{fields.path}: model_args.act_layer")
        elif key == "output_stride":
            if value not in (8, 16, 32):
                raise arguments.error(key, "8, 16 or 32")
            options[key] = value
        elif key == "num_classes":
            expected["model_args.num_classes"] = ("num_classes", arguments.integer(key) or 0)
        elif key == "in_chans":
            expected["model_args.in_chans"] = ("in_channels", arguments.integer(key) or 0)
        elif key in _CHOICES:
            options[key] = arguments.choice(key)
        else:
            raise arguments.lacks(key)
    if (classes := fields.integer("num_classes")) is not None:
        expected.setdefault("num_classes", ("num_classes", classes))
    plain = {"activation": "relu", "output_stride": 32, "global_pool": "avg", "aa_layer": ""}
    plain |= dict(ARCHITECTURES[name].options)
    options = {key: value for key, value in options.items() if plain[key] != value}
    pretrained = fields.inside("pretrained_cfg")
    class_names = _timm_classes(fields, pretrained, classes)
    preprocessing = _timm_preprocessing(pretrained) if pretrained.content else None
    return Config(fields.path, name, options, expected, preprocessing, class_names)


def _timm_classes(fields: Fields, pretrained: Fields, classes: int | None) -> tuple[str, ...] | None:
    names = fields.content.get("label_names")
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise fields.error("label_names", "a list of names")
        return tuple(names)
    offset = pretrained.integer("label_offset") or 0
    if offset not in (0, 1):
        raise pretrained.error("label_offset", "0 or 1")
    return ("background", *imagenet_classes()) if offset and classes in (None, 1001) else None


def _timm_preprocessing(fields: Fields) -> Preprocessing:
    size = fields.numbers("input_size", (3, 224, 224), 3)
    if any(x != int(x) or not 1 <= x <= LARGEST for x in size):
        raise fields.error("input_size", "a list of 3 whole numbers of channels and pixels")
    if size[1] != size[2]:
        raise fields.lacks("input_size", "only square images are cropped here")
    crop = int(size[-1])
    percent = fields.number("crop_pct", 0.875, low=0.01, high=1)
    if (mode := fields.content.get("crop_mode") or "center") != "center":
        raise fields.lacks("crop_mode") if isinstance(mode, str) else fields.error("crop_mode", "a string")
    interpolation = fields.content.get("interpolation") or "bilinear"
    if not isinstance(interpolation, str) or interpolation not in RESAMPLING:
        raise fields.lacks("interpolation", f"there are {', '.join(RESAMPLING)}")
    resize = math.floor(crop / percent)  # timm.data.transforms_factory.transforms_imagenet_eval
    if resize > LARGEST:
        raise fields.error("crop_pct", f"a fraction of at most {LARGEST} pixels")
    return Preprocessing(EvaluationTransform(resize, crop, interpolation), *_mean_std(fields, "mean", "std"))


# Hugging Face: transformers' ResNetConfig and its defaults.

_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _hugging_face(fields: Fields) -> Config:
    options: dict[str, Any] = {}
    expected: dict[str, tuple[str, int]] = {}
    activation = fields.content.get("hidden_act")
    if activation is not None and activation_named(activation, f"{fields.path}: hidden_act") != "relu":
        raise fields.lacks("hidden_act", "transformers has it after the stem and the sums, and ReLU inside the blocks")
    if fields.flag("downsample_in_first_stage"):
        raise fields.lacks("downsample_in_first_stage")
    if fields.flag("downsample_in_bottleneck") and fields.content.get("layer_type", "bottleneck") == "bottleneck":
        options["stride_in_first_1x1"] = True
    if (channels := fields.integer("num_channels")) is not None:
        expected["num_channels"] = ("in_channels", channels)
    class_names = _labels(fields)
    preprocessing = _hugging_face_preprocessing(fields.path.parent)
    return Config(fields.path, _hugging_face_architecture(fields), options, expected, preprocessing, class_names)


def _hugging_face_architecture(fields: Fields) -> str | None:
    if "depths" not in fields.content:
        return None
    depths, kind = fields.numbers("depths"), fields.content.get("layer_type", "bottleneck")
    if not isinstance(kind, str) or kind not in _BLOCKS:
        raise fields.lacks("layer_type", f"there are {', '.join(_BLOCKS)}")
    widths = tuple(64 * _BLOCKS[kind].expansion * 2**stage for stage in range(4))
    if fields.numbers("hidden_sizes", (256, 512, 1024, 2048)) != widths:
        raise fields.lacks("hidden_sizes", f"{kind} networks here have {list(widths)}")
    if fields.number("embedding_size", 64, low=1, high=1e6) != 64:
        raise fields.lacks("embedding_size", "networks here have 64")
    for row in ARCHITECTURES.values():
        if row.layers == depths and row.block is _BLOCKS[kind] and not row.options:
            return row.name
    raise fields.lacks("depths")


def _labels(fields: Fields) -> tuple[str, ...] | None:
    names = fields.inside("id2label").content
    if not names:
        return None
    if set(names) != {str(index) for index in range(len(names))} or not all(isinstance(n, str) for n in names.values()):
        raise fields.error("id2label", "an object of names for 0, 1, 2, ...")
    if all(names[str(i)] == f"LABEL_{i}" for i in range(len(names))):  # transformers' placeholders
        return None
    return tuple(names[str(index)] for index in range(len(names)))


def _hugging_face_preprocessing(folder: Path) -> Preprocessing | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    fields = Fields(path, _json(path))
    if "image_mean" not in fields.content:
        return None
    size = fields.content.get("size")
    crop = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if isinstance(crop, bool) or not isinstance(crop, int) or not 1 <= crop <= LARGEST:
        raise fields.error("size", "a number of pixels or an object with shortest_edge")
    if crop >= 384:
        raise fields.lacks("size", "from 384 pixels on transformers squeezes images to a square")
    kind = fields.content.get("image_processor_type", fields.content.get("feature_extractor_type", "ConvNext"))
    if not isinstance(kind, str) or not kind.startswith("ConvNext"):
        raise fields.lacks("image_processor_type", "there is ConvNextImageProcessor, transformers' own for ResNets")
    for flag in ("do_resize", "do_rescale", "do_normalize"):
        if flag in fields.content and not fields.flag(flag):
            raise fields.lacks(flag)
    if not math.isclose(fields.number("rescale_factor", 1 / 255, low=0, high=1e6), 1 / 255, rel_tol=1e-6):
        raise fields.lacks("rescale_factor", "images are divided by 255 here")
    # ConvNextImageProcessor, which transformers' ResNets use, resizes to size / crop_pct below 384 pixels.
    resize = int(crop / fields.number("crop_pct", 0.875, low=0.01, high=1))
    filters: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    resample = fields.content.get("resample", 3)
    if not isinstance(resample, int) or resample not in filters:
        raise fields.lacks("resample", "there are 0 (nearest), 2 (bilinear) and 3 (bicubic)")
    means, stds = _mean_std(fields, "image_mean", "image_std")
    return Preprocessing(EvaluationTransform(resize, crop, filters[resample]), means, stds)
