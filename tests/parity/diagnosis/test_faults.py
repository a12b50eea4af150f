"""Every known fault is caught by the check named for it, and named by the diagnosis."""

import os

import pytest

pytest.importorskip("torch", reason="compares with PyTorch")

from tests import ROOT
from tests.parity.diagnosis.faults import FAULTS, outcome


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    report = outcome(fault)
    assert not report.passed
    assert report.of(fault.check), "another check would have caught it"
    assert fault.diagnosis in " ".join(map(str, report.findings)), str(report)


DOCUMENT = ROOT / "docs" / "traps.md"
HEADER = """\
# Faults, and which check catches each

Each of these faults is planted by the tests in a small network (a stem, two bottlenecks, two linear layers) or in a
single layer; the check named must fail, and the diagnosis must name the cause. Made by `PARITY_WRITE_DOCS=1 pytest
tests/parity/diagnosis/test_faults.py`; float64 on a CPU unless the diagnosis says otherwise. The error is the relative
error of the first tensor that failed ("inf": no number can be given, as for memory that is shared).

| fault | caught by | error | diagnosis |
|---|---|---|---|
"""
ELSEWHERE = """
Faults in the data are caught by `parity.check_preprocessing` (no antialiasing, another size, a crop offset rounded
otherwise) and `parity.check_classes` (names sorted naturally), planted in `tests/parity/test_toolkit.py`; other
widths, such as a wrong formula for ResNeXt, by the list of shapes that differ before anything is computed. A forward
hook that keeps a tensor without copying it, and a comparison that leaves float64 on, are planted in
`tests/parity/checks/test_check.py`.
"""


def row(fault) -> str:
    report = outcome(fault)
    first = report.failures[0]
    return f"| {fault.what} | `{fault.check}` | {first.error.relative:.1e} | {report.findings[0].cause} |"


def test_the_documented_table_is_the_one_found():
    rows = [row(fault) for fault in FAULTS]
    if os.environ.get("PARITY_WRITE_DOCS"):
        DOCUMENT.write_text(HEADER + "\n".join(rows) + "\n" + ELSEWHERE, encoding="utf-8")
    documented = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "| `" in line]

    def without_error(line: str) -> list[str]:
        return [cell for index, cell in enumerate(line.split(" | ")) if index != 2]

    assert list(map(without_error, documented)) == list(map(without_error, rows))
