"""Pickles of plain data read without running their code: numpy arrays and scalars in dicts and lists."""

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from parity.errors import ParityError

# What numpy 1 and 2 write for arrays, scalars and types (numpy/core moved to numpy/_core in 2.0), and plain containers.
_PLAIN = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return getattr(import_module(module.replace("numpy.core", "numpy._core")), name)


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of numpy data, such as detectron2's model zoo and haiku's parameters.

    Raises:
        ParityError: if it holds anything else, which is not executed, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()  # Python 2 wrote numpy's bytes as str
    except pickle.UnpicklingError as error:
        found = str(error).removeprefix("GLOBAL ")
        raise ParityError(
            f"{path} holds something other than numpy arrays ({found}); nothing in it was executed. Load it with its "
            "own code, if you trust it, and save its arrays with numpy.savez"
        ) from error
    except MemoryError as error:
        raise no_memory(path, error) from error
    except Exception as error:  # a pickle is a program: damaged, it raises anything
        raise ParityError(f"{path} is truncated or not a pickle ({error})") from error


def no_memory(path: Path, error: MemoryError) -> ParityError:
    """The error for a file whose content did not fit: it is large, or is damaged where it states sizes."""
    reason = " ".join(str(error).split())
    return ParityError(f"{path} needs more memory than there is, or is damaged" + (f" ({reason})" if reason else ""))


def numpy_globals() -> list[Any]:
    """What `torch.load(weights_only=True)` has to be allowed, so that it reads numpy arrays and scalars.

    Each is named as numpy 1 and 2 do; none runs code from the file.
    """
    multiarray = import_module("numpy._core.multiarray")
    named = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDSUOMm"}
    return [*named, np.ndarray, np.dtype, *types, import_module("_codecs").encode]
