"""Reading and writing weights: .pth, .safetensors, and Orbax directories."""

import argparse
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.conversion.convert import as_numpy
from parity.conversion.files import require_readable, write_whole
from parity.errors import ParityError, needs_extra

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
LARGEST_EXPANSION = 4  # tensors that share memory, such as tied weights, are more bytes than the file has
SMALL = 2**20  # bytes: a file that unpacks to no more may be of any size
# What training scripts wrap a state_dict in; the first one present is used.
RECORDING = "parity-recording"  # in the metadata of what parity.record writes
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "state_dict_ema", "ema")


@dataclass(frozen=True)
class Checkpoint:
    """A state_dict read from a file.

    Attributes:
        tensors: {name: array}; the arrays may be views of the file's memory.
        metadata: text kept beside the weights.
        notes: what was skipped while reading, one sentence each.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state_dict in a .safetensors file (PyTorch is not needed) or a .pth file, as numpy arrays.

    Of a recording (`parity.record`), the weights in it.

    Raises:
        ParityError: if there is no such file, or it is damaged, or holds anything but tensors.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata.get("format") != RECORDING:
        return checkpoint.tensors
    names = [name for name in checkpoint.tensors if name.startswith("state/")]
    if not names:
        raise ParityError(f"{path} is a recording with digests of the weights only; record it with weights='values'")
    return {name.removeprefix("state/"): checkpoint.tensors[name] for name in names}


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """As `load_checkpoint`, with the metadata kept beside the tensors."""
    path = Path(path)
    require_readable(path)
    if path.is_dir():
        raise ParityError(f"{path} is a directory; .pth and .safetensors files hold a state_dict")
    if path.stat().st_size == 0:
        raise ParityError(f"{path} is empty (0 bytes)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise ParityError(f"{path}: the name must end in .safetensors or one of {', '.join(TORCH_SUFFIXES)}")


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except AttributeError as error:  # float8 has no counterpart in numpy
        raise ParityError(f"{path} holds a data type that numpy lacks ({error})") from error
    except (SafetensorError, OSError) as error:
        if _is_zip(path):
            raise ParityError(f"{path} is a PyTorch file with the wrong ending; rename it to .pth") from error
        raise ParityError(f"{path} is truncated or not a safetensors file ({error})") from error


def _read_torch(path: Path) -> Checkpoint:
    with needs_extra("torch", f"reading {path}", "use a .safetensors file"):
        import torch
    _require_stored(path)
    try:
        # Training scripts store their arguments in the file; a Namespace is plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about the pickle protocol, before the error that matters
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        _require_no_safetensors(path, error)
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a Python object ({found[1]})" if found else "something other than tensors"
        raise ParityError(
            f"{path} holds {what}; nothing in it was executed. If it is a whole saved model from someone you trust, "
            "load it with its own code and save model.state_dict() instead"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever torch raises for a damaged file
        _require_no_safetensors(path, error)
        # A KeyError only holds the byte that is no pickle opcode.
        reason = "" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0].split(". ")[0]
        reason = f" ({reason})" if reason else ""
        raise ParityError(f"{path} is truncated or not a PyTorch file{reason}") from error
    tensors, notes = _unwrap(content, path, torch.Tensor)
    _require_no_larger(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = as_numpy(tensor)
        except (TypeError, RuntimeError) as error:
            if tensor.is_meta:
                raise ParityError(f"{path}: {name} has no values (it was saved on PyTorch's device meta)") from error
            kind = f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
            raise ParityError(f"{path}: {name} is a tensor ({kind}) that has no numpy type") from error
    return Checkpoint(arrays, notes=notes)


def _require_stored(path: Path) -> None:
    """Raises ParityError for a zip archive that unpacks to a multiple of its size: PyTorch compresses nothing."""
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            promised = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error):
        return  # PyTorch's own reader names what is wrong with it
    _require_no_larger(path, promised)


def _require_no_larger(path: Path, promised: int) -> None:
    size = path.stat().st_size
    if promised > LARGEST_EXPANSION * size + SMALL:
        raise ParityError(
            f"{path} has {size:,} bytes but unpacks to {promised:,}, which no checkpoint saved by PyTorch does; "
            "nothing was unpacked"
        )


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file into memory: it has been a zip archive since PyTorch 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _require_no_safetensors(path: Path, error: Exception) -> None:
    with path.open("rb") as file:
        start = file.read(9)  # of a safetensors file: the length of a JSON object, and its first brace
    if start[8:] == b"{":
        raise ParityError(f"{path} is a safetensors file with the wrong ending; rename it to .safetensors") from error


def _unwrap(content: Any, path: Path, tensor_type: type) -> tuple[dict[str, Any], tuple[str, ...]]:
    notes, opened = [], set()
    while isinstance(content, Mapping):  # the best accuracy stored beside it may be a tensor as well
        if id(content) in opened:
            raise ParityError(f"{path} holds a dictionary that contains itself, and no state_dict")
        opened.add(id(content))
        wrappers = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrappers:
            break
        others = [str(key) for key in content if key != wrappers[0]]
        notes.append(f"took the entry {wrappers[0]!r}" + (f" and dropped {', '.join(others)}" if others else ""))
        content = content[wrappers[0]]
    if not isinstance(content, Mapping):
        raise ParityError(f"{path} holds a {type(content).__name__}, not a state_dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, tensor_type)}
    if not tensors:
        keys = f", only {', '.join(str(key) for key in list(content)[:5])}" if content else ""
        raise ParityError(f"{path} holds no tensors{keys}: it is not a state_dict")
    if len(tensors) < len(content):
        notes.append(
            f"dropped entries that are not tensors: {', '.join(str(k) for k in content if str(k) not in tensors)}"
        )
    return tensors, tuple(notes)


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """The same bytes for the same content: the library writes the metadata in another order each time.

    The file begins with the length of its header, 8 bytes little-endian, and the header, a JSON object padded with
    spaces (https://huggingface.co/docs/safetensors, "Format").
    """
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > length:
            raise ValueError("the header does not fit where the library wrote it")
        file.seek(8)
        file.write(ordered.ljust(length))


def write_checkpoint(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a state_dict as .safetensors (with text metadata) or .pth, depending on the ending.

    The file appears whole or not at all: it is written to a temporary name and renamed.

    Raises:
        ParityError: for any other ending, or if the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content = {"format": "pt", **(metadata or {})}
        write_whole(path, lambda temporary: _write_safetensors(temporary, tensors, content))
    elif path.suffix in (".pth", ".pt"):
        with needs_extra("torch", f"writing {path}", "use a .safetensors file"):
            import torch

        def as_tensor(array: np.ndarray):
            if array.dtype.name == "bfloat16":
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)

        state_dict = {name: as_tensor(array) for name, array in tensors.items()}
        write_whole(path, lambda temporary: torch.save(state_dict, temporary))
    else:
        raise ParityError(f"{path}: the name must end in .safetensors, .pth or .pt")
