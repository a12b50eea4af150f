"""Weights in a folder or in several files, as the Hugging Face hub lays them out."""

import json
import re
from pathlib import Path

from parity.conversion.files import read_regular
from parity.errors import ParityError

WHOLE = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
INDICES = tuple(f"{name}.index.json" for name in WHOLE)
LARGEST_INDEX = 2**26  # bytes
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.\w+)")


def weights_file(folder: Path) -> Path | None:
    """The file of weights in a folder, or the index of several; None if there is none of a usual name."""
    return next((folder / name for name in (*WHOLE, *INDICES) if (folder / name).is_file()), None)


def shards(path: Path, *, complete: bool = True) -> list[Path] | None:
    """The files that hold one state_dict together, if `path` is their index or one of them; None for a whole file.

    Args:
        complete: whether all of them have to be there.

    Raises:
        ParityError: for an index that is damaged or whose files are not all there.
    """
    if path.name.endswith(".index.json"):
        return _require(_indexed(path), path) if complete else _indexed(path)
    if not (match := _SHARD.fullmatch(path.name)):
        return None
    stem, count, suffix = match[1], match[2], match[3]
    return _require([path.with_name(f"{stem}-{n:05d}-of-{count}{suffix}") for n in range(1, int(count) + 1)], path)


def _indexed(path: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(read_regular(path, LARGEST_INDEX))["weight_map"].values()))
        return [path.with_name(Path(name).name) for name in names]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ParityError(f"{path} is not an index of weights: it has no weight_map of names to files") from error


def _require(files: list[Path], path: Path) -> list[Path]:
    if absent := [file.name for file in files if not file.is_file()]:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ParityError(
            f"{path} is one of {len(files)} shards of a state_dict, and {shown} of them are missing from its folder; "
            "give a folder that has all of them"
        )
    return files
