"""What a `--data` spec means: one row per kind of data set, and the function that opens it."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_flax.data.source import SourceOptions
from resnet_flax.data.splits import canonical
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from resnet_flax.data.source import Source


@dataclass(frozen=True)
class Kind:
    """One kind of data set.

    Attributes:
        opener: "module:function" of (rest of the spec, split) -> Source, imported on demand: nobody pays for another
            source's libraries.
        form: how its specs are written.
        summary: one line about it.
        is_path: whether the rest of the spec is a path.
        takes: the keywords that the opener takes besides, of "options", "data_dir" and "may_prepare".
    """

    opener: str
    form: str
    summary: str
    is_path: bool = False
    takes: tuple[str, ...] = ("options",)


KINDS = {
    "digits": Kind("resnet_flax.data.arrays:open_digits", "digits", "scikit-learn's 1,797 real 8x8 images"),
    "idx": Kind(
        "resnet_flax.data.arrays:open_idx", "idx:DIR", "the four IDX files of MNIST and its family", is_path=True
    ),
    "folder": Kind(
        "resnet_flax.data.folder:FolderSource", "folder:DIR", "one folder of images per class", is_path=True
    ),
    "whole": Kind(
        "resnet_flax.data.folder:WholeFolder",
        "whole:DIR",
        "one folder of images per class, all of them to evaluate on, such as ImageNet-V2, -A, -R and -Sketch",
        is_path=True,
    ),
    "tfds": Kind(
        "resnet_flax.data.tfds:TfdsSource",
        "tfds:NAME[/CONFIG][:VERSION]",
        "a TensorFlow Datasets set with an image and a class label",
        takes=("options", "data_dir", "may_prepare"),
    ),
    "synthetic": Kind(
        "resnet_flax.data.synthetic:SyntheticSource", "synthetic:HxWxC:N", "N images of noise, for benchmarks"
    ),
}
"""{the part of a spec before the first colon: its kind}. A new source is a row here and a module of its own."""

FORMS = ", ".join(kind.form for kind in list(KINDS.values())[:-1]) + f" or {list(KINDS.values())[-1].form}"
"""The forms of a spec, for messages and --help."""


def scheme_of(spec: str) -> str:
    """The part of a spec that names its kind: "folder" for "folder:images"."""
    return spec.partition(":")[0]


def is_path(spec: str) -> bool:
    """Whether the rest of the spec is a path."""
    kind = KINDS.get(scheme_of(spec))
    return kind is not None and kind.is_path


def absolute(spec: str) -> str:
    """The spec with its path made absolute, if it has one."""
    scheme, _, rest = spec.partition(":")
    return f"{scheme}:{Path(rest).expanduser().absolute()}" if is_path(spec) and rest else spec


def open_source(
    spec: str,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    may_prepare: bool = True,
    options: SourceOptions | None = None,
) -> Source:
    """Opens the data set that `spec` names.

    Args:
        spec: in one of the forms of `KINDS`.
        split: "train", "val" (also "validation", "valid", "dev") or "test"; see `splits.choose`.
        data_dir: directory of TFDS data sets; TFDS's default, `~/tensorflow_datasets`, if None.
        may_prepare: whether a TFDS set that is not there may be downloaded and prepared.
        options: how the set is read; `SourceOptions()` if None.

    Raises:
        UserError: for an unknown spec or split, or if the data set cannot be opened.
    """
    canonical(split)
    scheme, colon, rest = spec.partition(":")
    kind = KINDS.get(scheme)
    if kind is None or bool(rest) != (":" in kind.form) or (colon and not rest):
        raise UserError(f"unknown data spec {spec!r}; expected {FORMS}{_hint(spec)}")
    options = options or SourceOptions()
    for option, value, only in (
        ("--classes", options.classes, ["folder", "whole"]),
        ("--label", options.label, ["tfds"]),
    ):
        if value is not None and scheme not in only:
            raise UserError(f"{option} is for {' and '.join(KINDS[name].form for name in only)}; {spec} has its own")
    module, _, name = kind.opener.partition(":")
    known = {"options": options, "data_dir": Path(data_dir).expanduser() if data_dir else None}
    known["may_prepare"] = may_prepare
    keywords: dict[str, Any] = {name: known[name] for name in kind.takes}
    return getattr(importlib.import_module(module), name)(rest, split, **keywords)


def _hint(spec: str) -> str:
    scheme, colon, rest = spec.partition(":")
    near = [f"{name}{colon}{rest}" for name in difflib.get_close_matches(scheme, KINDS, n=1)]
    likely = f"folder:{spec}" if Path(spec).is_dir() else next(iter(near), spec)
    return f"; did you mean {likely} ?" if likely != spec else ""
