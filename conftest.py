"""Runs the Python blocks of the documentation, so that no page says what isn't so."""

import importlib.util

import pytest

# These pages compare with PyTorch.
without_torch = (
    []
    if importlib.util.find_spec("torch")
    else [
        "coming-from-pytorch.md",
        "differ.md",
        "differences.md",
        "fingerprints.md",
        "getting-started.md",
        "index.md",
        "parity-for-your-own-model.md",
        "README.md",
    ]
)

if importlib.util.find_spec("sybil"):  # without the extra `test` the examples still run
    from sybil import Sybil
    from sybil.parsers.markdown import PythonCodeBlockParser

    pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"], excludes=without_torch).pytest()


@pytest.hookimpl(tryfirst=True)  # before those of other marks are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tutorial trains a network with a name, which compiles for a minute on two cores."""
    for item in items:
        if item.path.name == "tutorial.md":
            item.add_marker(pytest.mark.full)
