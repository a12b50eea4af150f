"""Every known fault is caught by the check named for it, and named by the diagnosis."""

import pytest

pytest.importorskip("torch")

from tests.parity_faults import FAULTS, outcome


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault_is_caught_and_named(fault):
    report = outcome(fault)
    assert not report.passed
    assert report.of(fault.check), "another check would have caught it"
    assert fault.diagnosis in " ".join(map(str, report.findings)), str(report)
