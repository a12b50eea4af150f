"""Runs the Python blocks of the documentation, so that no page says what isn't so."""

import importlib.util

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# These pages compare with PyTorch.
without_torch = (
    []
    if importlib.util.find_spec("torch")
    else [
        "coming-from-pytorch.md",
        "differ.md",
        "differences.md",
        "getting-started.md",
        "index.md",
        "parity-for-your-own-model.md",
        "README.md",
    ]
)

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"], excludes=without_torch).pytest()
