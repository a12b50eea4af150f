"""Converts PyTorch checkpoints to Flax and back, and proves that two networks agree.

Importing this does not import PyTorch: the names that need it are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from parity.checkpoints import load_checkpoint
from parity.convert import to_flax, to_torch
from parity.naming import LeafRule, ParityError, register_layer

if TYPE_CHECKING:
    from parity.checks import CHECKS, check
    from parity.optimizers import Optimizer
    from parity.randomize import random_inputs, randomize
    from parity.results import Comparison, Finding, Report
    from parity.testing import assert_gradient_parity, assert_parity, assert_train_parity

_LAZY = {
    "CHECKS": "parity.checks",
    "check": "parity.checks",
    "Optimizer": "parity.optimizers",
    "random_inputs": "parity.randomize",
    "randomize": "parity.randomize",
    "Comparison": "parity.results",
    "Finding": "parity.results",
    "Report": "parity.results",
    "assert_gradient_parity": "parity.testing",
    "assert_parity": "parity.testing",
    "assert_train_parity": "parity.testing",
}

__all__ = [
    "CHECKS",
    "Comparison",
    "Finding",
    "LeafRule",
    "Optimizer",
    "ParityError",
    "Report",
    "assert_gradient_parity",
    "assert_parity",
    "assert_train_parity",
    "check",
    "load_checkpoint",
    "random_inputs",
    "randomize",
    "register_layer",
    "to_flax",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
