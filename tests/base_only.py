"""Runs commands as if only the base were installed: what the extras add cannot be imported.

usage: python -m tests.base_only < [["resnet_flax", "models"], ...]; prints [[status, stdout, stderr], ...], as JSON.
A command is a package followed by its arguments; ["import", "MODULE"] or ["import", "MODULE:NAME"] imports.
"""

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Sequence

ABSENT = (
    "cykooz_resizer",
    "datasets",
    "grain",
    "importlib_resources",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "orbax",
    "pyarrow",
    "sklearn",
    "tensorboard",
    "tensorflow",
    "tensorflow_datasets",
    "timm",
    "torch",
    "torchvision",
)


class Absent:
    """A meta path finder that finds the modules of `ABSENT` to be missing."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(program: str, *arguments: str) -> int:
    if program == "import":
        module, _, name = arguments[0].partition(":")
        getattr(importlib.import_module(module), name or "__name__")
        return 0
    return importlib.import_module(f"{program}.__main__").main(list(arguments))


def main() -> None:
    sys.meta_path.insert(0, Absent())
    results = []
    for command in json.load(sys.stdin):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                status = run(*command)
            except SystemExit as end:  # after --help
                status = end.code
            except ValueError as error:
                status = f"{type(error).__name__}: {error}"
        results.append([status, out.getvalue(), err.getvalue()])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
