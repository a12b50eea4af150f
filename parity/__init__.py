"""Converts PyTorch checkpoints to Flax and back, and proves that two networks agree.

Everything is loaded when it is first used: `import parity` imports neither JAX nor PyTorch, because the pytest plugin
here is imported by every pytest run of whoever installed us.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.checks.averages import check_average
    from parity.checks.check import CHECKS, check
    from parity.checks.data import check_classes, check_preprocessing
    from parity.checks.record import record
    from parity.conversion.checkpoints import load_checkpoint
    from parity.conversion.convert import to_flax, to_torch
    from parity.conversion.rules import LeafRule, register_layer
    from parity.errors import ParityError
    from parity.fingerprints.fingerprint import fingerprint
    from parity.fingerprints.preprocessing import Preprocessing
    from parity.fingerprints.report import Fingerprint
    from parity.reports.results import Comparison, Finding, Report
    from parity.sides.matching import match_names
    from parity.sides.optimizers import Optimizer
    from parity.sides.random_weights import random_inputs, randomize
    from parity.testing import assert_gradient_parity, assert_parity, assert_train_parity

__all__ = [
    "CHECKS",
    "Comparison",
    "Finding",
    "Fingerprint",
    "LeafRule",
    "Optimizer",
    "ParityError",
    "Preprocessing",
    "Report",
    "assert_gradient_parity",
    "assert_parity",
    "assert_train_parity",
    "check",
    "check_average",
    "check_classes",
    "check_preprocessing",
    "fingerprint",
    "load_checkpoint",
    "match_names",
    "random_inputs",
    "randomize",
    "record",
    "register_layer",
    "to_flax",
    "to_torch",
]

_MODULES = {
    "checks.averages": ("check_average",),
    "checks.data": ("check_classes", "check_preprocessing"),
    "checks.check": ("CHECKS", "check"),
    "checks.record": ("record",),
    "conversion.checkpoints": ("load_checkpoint",),
    "conversion.convert": ("to_flax", "to_torch"),
    "conversion.rules": ("LeafRule", "register_layer"),
    "errors": ("ParityError",),
    "fingerprints.fingerprint": ("fingerprint",),
    "fingerprints.preprocessing": ("Preprocessing",),
    "fingerprints.report": ("Fingerprint",),
    "reports.results": ("Comparison", "Finding", "Report"),
    "sides.matching": ("match_names",),
    "sides.optimizers": ("Optimizer",),
    "sides.random_weights": ("random_inputs", "randomize"),
    "testing": ("assert_gradient_parity", "assert_parity", "assert_train_parity"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    from parity.errors import needs_extra

    with needs_extra("torch", f"parity.{name}"):
        return getattr(importlib.import_module(f"parity.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__"])
