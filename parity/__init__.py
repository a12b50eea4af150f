"""Converts PyTorch checkpoints to Flax and back, and proves that two networks agree."""

from parity.convert import to_flax, to_torch
from parity.naming import LeafRule, ParityError, register_layer

__all__ = ["LeafRule", "ParityError", "register_layer", "to_flax", "to_torch"]
