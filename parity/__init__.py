"""Converts PyTorch checkpoints to Flax and back, and proves that two networks agree."""
