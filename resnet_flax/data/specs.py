"""What a `--data` spec means: one row per kind of data set, and the function that opens it."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.conversion.files import tidied
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.splits import canonical
from resnet_flax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_flax.data.source import Source

    Writer = Callable[..., Path]


@dataclass(frozen=True)
class Kind:
    """One kind of data set.

    Attributes:
        opener: "module:function" of (rest of the spec, split) -> Source, imported on demand: nobody pays for another
            source's libraries.
        form: how its specs are written.
        summary: one line about it.
        is_path: whether the rest of the spec is a path or a pattern of paths; None if it may also be a name.
        takes: the keywords that the opener takes besides, of "options", "data_dir" and "may_prepare".
        own: the fields of `SourceOptions` that it shares with few other kinds.
        writer: "module:function" that writes sources in this form; see `writer_of`.
    """

    opener: str
    form: str
    summary: str
    is_path: bool | None = False
    takes: tuple[str, ...] = ("options",)
    own: tuple[str, ...] = ()
    writer: str | None = None


KINDS = {
    "digits": Kind("resnet_flax.data.arrays:open_digits", "digits", "scikit-learn's 1,797 real 8x8 images"),
    "idx": Kind(
        "resnet_flax.data.arrays:open_idx", "idx:DIR", "the four IDX files of MNIST and its family", is_path=True
    ),
    "folder": Kind(
        "resnet_flax.data.folder:open_folder",
        "folder:DIR",
        "one folder of images per class",
        is_path=True,
        own=("classes", "labels", "label", "image"),
    ),
    "whole": Kind(
        "resnet_flax.data.folder:WholeFolder",
        "whole:DIR",
        "one folder of images per class, all of them to evaluate on, such as ImageNet-V2, -A, -R and -Sketch",
        is_path=True,
        own=("classes",),
    ),
    "tfds": Kind(
        "resnet_flax.data.tfds:TfdsSource",
        "tfds:NAME[/CONFIG][:VERSION]",
        "a TensorFlow Datasets set with an image and a class label",
        takes=("options", "data_dir", "may_prepare"),
        own=("label",),
        writer="resnet_flax.data.prepare:write_tfds",
    ),
    "hf": Kind(
        "resnet_flax.data.hf:open_hf",
        "hf:NAME_OR_DIR[:SPLIT]",
        "a Hugging Face data set with an image and a label, on the hub or saved",
        is_path=None,
        takes=("options", "may_prepare"),
        own=("label", "image"),
        writer="resnet_flax.data.hf:write_hf",
    ),
    "parquet": Kind(
        "resnet_flax.data.parquet:open_parquet",
        "parquet:GLOB",
        "parquet files with an image and a label",
        is_path=True,
        own=("label", "image"),
        writer="resnet_flax.data.parquet:write_parquet",
    ),
    "wds": Kind(
        "resnet_flax.data.wds:open_wds",
        "wds:GLOB",
        "webdataset's tar files",
        is_path=True,
        own=("label", "image"),
        writer="resnet_flax.data.wds:write_wds",
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
    """Whether the rest of the spec is a path; of a kind that may have a name, whether there is a directory."""
    scheme, _, rest = spec.partition(":")
    if (kind := KINDS.get(scheme)) is None or kind.is_path is not None:
        return kind is not None and bool(kind.is_path)
    paths = [Path(path).expanduser() for path in (rest, rest.rpartition(":")[0]) if path]
    return any(path.is_absolute() or path.is_dir() for path in paths)


def absolute(spec: str) -> str:
    """The spec with its path made absolute, if it has one."""
    scheme, _, rest = spec.partition(":")
    return f"{scheme}:{tidied(Path(rest).expanduser().absolute())}" if is_path(spec) and rest else spec


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
    for option in ("classes", "labels", "image", "label"):
        if getattr(options, option) is not None and option not in kind.own:
            forms = " or ".join(kind.form for kind in KINDS.values() if option in kind.own)
            raise UserError(f"--{option} is for {forms}; {spec} has its own")
    if is_path(spec):
        rest = str(tidied(rest))
    module, _, name = kind.opener.partition(":")
    known = {"options": options, "data_dir": Path(data_dir).expanduser() if data_dir else None}
    known["may_prepare"] = may_prepare
    keywords: dict[str, Any] = {name: known[name] for name in kind.takes}
    return getattr(importlib.import_module(module), name)(rest, split, **keywords)


WRITABLE = tuple(scheme for scheme, kind in KINDS.items() if kind.writer)
"""The kinds that a source can be written as."""


def writer_of(scheme: str) -> Writer:
    """The function that writes sources as this kind: (name, data_dir, {split: source}, on_sample=...) -> path.

    A kind that is read by a path is written to the path `name`, others to `data_dir`.
    """
    module, _, name = str(KINDS[scheme].writer).partition(":")
    return getattr(importlib.import_module(module), name)


def _hint(spec: str) -> str:
    scheme, colon, rest = spec.partition(":")
    near = [f"{name}{colon}{rest}" for name in difflib.get_close_matches(scheme, KINDS, n=1)]
    likely = f"folder:{spec}" if Path(spec).is_dir() else next(iter(near), spec)
    return f"; did you mean {likely} ?" if likely != spec else ""
