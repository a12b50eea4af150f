"""A report as JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parity.conversion.files import write_text
from parity.reports.results import Report

SCHEMA = 1
"""Version of the JSON layout; raised when a field changes its meaning or goes."""


def as_dict(report: Report) -> dict[str, Any]:
    """Plain data, with figures that JSON cannot hold (NaN, infinity) as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(
        {
            "schema": SCHEMA,
            "passed": report.passed,
            "settings": report.settings,
            "seconds": report.seconds,
            "comparisons": [{**asdict(row), "passed": row.passed} for row in report.comparisons],
            "findings": [asdict(finding) for finding in report.findings],
            "curves": report.curves,
            "notes": report.notes,
            "warnings": report.warnings,
        }
    )


def write_json(report: Report, path: Path) -> None:
    """One JSON object; its layout is versioned by the field "schema".

    Raises:
        ParityError: if it cannot be written.
    """
    write_text(path, json.dumps(as_dict(report), indent=1) + "\n")
