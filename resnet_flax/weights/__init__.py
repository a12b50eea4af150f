"""Weights of the family, published, from the hub or from files of any naming: identifying, converting, loading."""

from resnet_flax.weights.files import Weights, read_weights, write_weights

__all__ = ["Weights", "read_weights", "write_weights"]
