"""Reading and writing weights: .pth, .safetensors, and Orbax directories."""

import argparse
import contextlib
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
from parity.conversion.folders import WHOLE, shards, weights_file
from parity.conversion.nesting import flattened, network_name, tree, unnested
from parity.conversion.pickles import no_memory, numpy_globals, read_plain_pickle
from parity.errors import ParityError, needs_extra

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pyth")
NUMPY_SUFFIXES = (".npz", ".pkl", ".msgpack")
LARGEST_EXPANSION = 4  # tensors that share memory, such as tied weights, are more bytes than the file has
SMALL = 2**20  # bytes: a file that unpacks to no more may be of any size
RECORDING = "parity-recording"  # in the metadata of what parity.record writes


@dataclass(frozen=True)
class Checkpoint:
    """A state_dict read from a file.

    Attributes:
        tensors: {name: array}; the arrays may be views of the file's memory.
        metadata: text kept beside the weights; "architecture" is what the file calls the network.
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

    Examples:
        >>> import numpy as np, parity
        >>> from safetensors.numpy import save_file
        >>> save_file({"weight": np.zeros((4, 8), np.float32)}, "linear.safetensors")
        >>> parity.load_checkpoint("linear.safetensors")["weight"].shape
        (4, 8)
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata.get("format") != RECORDING:
        return checkpoint.tensors
    names = [name for name in checkpoint.tensors if name.startswith("state/")]
    if not names:
        raise ParityError(f"{path} is a recording with digests of the weights only; record it with weights='values'")
    return {name.removeprefix("state/"): checkpoint.tensors[name] for name in names}


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """As `load_checkpoint`, with the metadata kept beside the tensors.

    It may also be a folder with model.safetensors or pytorch_model.bin, whole or in shards with their index; or arrays
    without PyTorch: .npz, a .pkl of numpy arrays, or Flax's .msgpack, whose nested names are joined by dots.
    """
    path = Path(path)
    require_readable(path)
    if path.is_dir():
        if (inside := weights_file(path)) is None:
            raise ParityError(f"{path} is a directory without {' or '.join(WHOLE)}; give the file that holds weights")
        path = inside
    if files := shards(path):
        return _joined([_read_file(file) for file in files], path)
    return _read_file(path)


def _joined(parts: list[Checkpoint], path: Path) -> Checkpoint:
    tensors: dict[str, np.ndarray] = {}
    for part in parts:
        if twice := next((name for name in part.tensors if name in tensors), None):
            raise ParityError(f"{path}: {twice} is in two shards of the same state_dict")
        tensors |= part.tensors
    notes = (f"read {len(parts)} shards", *(note for part in parts for note in part.notes))
    return Checkpoint(tensors, parts[0].metadata, notes)


def _read_file(path: Path) -> Checkpoint:
    require_readable(path)
    if path.stat().st_size == 0:
        raise ParityError(f"{path} is empty (0 bytes)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES or (path.suffix == ".pkl" and _is_zip(path)):
        return _read_torch(path)
    if path.suffix in NUMPY_SUFFIXES:
        return _read_arrays(path)
    known = ", ".join((*TORCH_SUFFIXES, *NUMPY_SUFFIXES))
    raise ParityError(f"{path}: the name must end in .safetensors or one of {known}")


def _read_arrays(path: Path) -> Checkpoint:
    if path.suffix == ".npz":
        _require_stored(path)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:  # np.load may not close it
                content: Any = {name: file[name] for name in file.files}
        except MemoryError as error:
            raise no_memory(path, error) from error
        except Exception as error:  # numpy's, zipfile's and zlib's own kinds
            raise ParityError(f"{path} is truncated or not a file of numpy arrays ({error})") from error
    elif path.suffix == ".msgpack":
        from flax.serialization import msgpack_restore

        try:
            content = msgpack_restore(path.read_bytes())
        except Exception as error:  # msgpack's own kinds
            raise ParityError(f"{path} is truncated or not Flax's msgpack ({error})") from error
    else:
        content = read_plain_pickle(path)
    return from_tree(content, path)


def from_tree(content: Any, path: Path) -> Checkpoint:
    """A checkpoint from nested dicts of arrays; an optimiser's state (`opt_state`) in them is dropped, with a note."""
    content, notes = tree(content, path, _is_array), []
    while isinstance(content, Mapping) and not any(_is_array(value) and value.ndim for value in content.values()):
        if "opt_state" in content:
            notes.append("dropped opt_state")
            content = {key: value for key, value in content.items() if key != "opt_state"}
        inner = [value for value in content.values() if isinstance(value, Mapping)]
        if len(inner) != 1:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise ParityError(f"{path} holds a {type(content).__name__}, not named arrays")
    flat = flattened(content, _is_array)
    if not flat:
        raise ParityError(f"{path} holds no arrays, only {', '.join(map(str, list(content)[:5]))}")
    return Checkpoint({name.replace("/", "."): array for name, array in flat.items()}, notes=tuple(notes))


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except AttributeError as error:  # float8 has no counterpart in numpy
        raise ParityError(
            f"{path} holds a data type that numpy lacks ({error}); save its tensors as float32"
        ) from error
    except (SafetensorError, OSError) as error:
        if _is_zip(path):
            raise ParityError(f"{path} is a PyTorch file with the wrong ending; rename it to .pth") from error
        raise ParityError(f"{path} is truncated or not a safetensors file ({error})") from error


def _read_torch(path: Path) -> Checkpoint:
    with needs_extra("torch", f"reading {path}", "use a .safetensors file"):
        import torch
    _require_stored(path)
    try:
        # Training scripts store their arguments and results in the file; these types are plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *numpy_globals()]):
            warnings.simplefilter("ignore")  # about the pickle protocol, before the error that matters
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        _require_no_safetensors(path, error)
        _require_no_torchscript(path, error)
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a Python object ({found[1]})" if found else "something other than tensors"
        raise ParityError(
            f"{path} holds {what}; nothing in it was executed. If it is a whole saved model from someone you trust, "
            "load it with its own code and save model.state_dict() instead"
        ) from error
    except MemoryError as error:
        raise no_memory(path, error) from error
    except Exception as error:  # whatever torch raises for a damaged file
        _require_no_safetensors(path, error)
        _require_no_torchscript(path, error)
        # A KeyError only holds the byte that is no pickle opcode.
        reason = "" if isinstance(error, KeyError) else str(error).strip().partition("\n")[0].split(". ")[0]
        reason = f" ({reason})" if reason else ""
        raise ParityError(f"{path} is truncated or not a PyTorch file{reason}") from error
    tensors, notes = unnested(content, path, lambda value: isinstance(value, torch.Tensor) or _is_array(value))
    _require_no_larger(
        path, sum(x.size * x.itemsize if _is_array(x) else x.numel() * x.element_size() for x in tensors.values())
    )
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = as_numpy(tensor)
        except (TypeError, RuntimeError) as error:
            if getattr(tensor, "is_meta", False):
                raise ParityError(f"{path}: {name} has no values (it was saved on PyTorch's device meta)") from error
            kind = f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
            if tensor.is_quantized:
                raise ParityError(
                    f"{path}: {name} is quantised ({kind}), which rounds the weights; give the checkpoint from before "
                    "quantisation, or save {name: tensor.dequantize()}"
                ) from error
            raise ParityError(
                f"{path}: {name} is a tensor ({kind}) that has no numpy type; save it as a dense float32 tensor"
            ) from error
    name = network_name(content)
    return Checkpoint(arrays, {"architecture": name} if name else {}, notes)


def _require_stored(path: Path) -> None:
    """Raises ParityError for a zip archive that unpacks to a multiple of its size, which weights do not."""
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            promised = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error):
        return  # the reader itself names what is wrong with it
    _require_no_larger(path, promised)


def _require_no_larger(path: Path, promised: int) -> None:
    size = path.stat().st_size
    if promised > LARGEST_EXPANSION * size + SMALL:
        raise ParityError(
            f"{path} has {size:,} bytes but unpacks to {promised:,}, which no file of weights does; "
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


def _require_no_torchscript(path: Path, error: Exception) -> None:
    if not _is_zip(path):
        return
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        if any(name.endswith("/constants.pkl") for name in file.namelist()):
            raise ParityError(
                f"{path} is a TorchScript archive, which holds code; if you trust it, save its weights with "
                f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
            ) from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object


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
