"""A pytest plugin, in effect wherever this package is installed: two fixtures and `--parity-report=DIR`.

Every pytest run of whoever installed us loads this file, so it imports neither JAX nor PyTorch; the fixtures do.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

_DIRECTORY = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("parity").addoption(
        "--parity-report",
        metavar="DIR",
        type=Path,
        help="write each report of the fixture parity_check to DIR, as JSON and as a page with plots",
    )


def pytest_configure(config: pytest.Config) -> None:
    if directory := config.getoption("parity_report", None):
        config.stash[_DIRECTORY] = directory


@pytest.fixture
def parity_check(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`parity.check` that fails the test unless the two agree; `--parity-report` keeps its report."""
    from parity.errors import ParityError, needs_extra

    with needs_extra("torch", "the fixture parity_check"):
        from parity.checks.check import check

    count = 0

    def run(*args: Any, **options: Any) -> Any:
        nonlocal count
        __tracebackhide__ = True  # pytest then shows the caller's line
        try:
            report = check(*args, **options)
        except ParityError as error:
            raise error.with_traceback(None) from None  # the message helps, the stack does not
        written = None
        if directory := request.config.stash.get(_DIRECTORY, None):
            from parity.reports.html import write_html
            from parity.reports.json import write_json

            directory.mkdir(parents=True, exist_ok=True)
            count += 1
            name = re.sub(r"[^\w.-]+", "_", request.node.nodeid) + (f"-{count}" if count > 1 else "")
            written = directory / f"{name}.html"
            write_json(report, directory / f"{name}.json")
            write_html(report, written)
        if not report.passed:
            caller = sys._getframe(1)
            place = os.path.relpath(caller.f_code.co_filename, request.config.invocation_params.dir)
            where = [f"{place}:{caller.f_lineno}", *([f"report: {written}"] if written else [])]
            pytest.fail("\n".join([report.headline, *where, "", str(report)]), pytrace=False)
        return report

    return run


@pytest.fixture
def parity_randomize() -> "Callable[..., np.ndarray]":
    """(flax_model, torch_model, input_shape) -> inputs: fills both with the same values, which hide nothing."""
    from parity.errors import ParityError, needs_extra

    with needs_extra("torch", "the fixture parity_randomize"):
        from parity.sides.random_weights import random_inputs, randomize

    def fill(flax_model: Any, torch_model: Any, shape: tuple[int, ...], *, seed: int = 0, names: Any = None) -> Any:
        __tracebackhide__ = True
        try:
            randomize(flax_model, torch_model, seed=seed, names=names)
        except ParityError as error:
            raise error.with_traceback(None) from None
        return random_inputs(shape, seed=seed)

    return fill
