"""The ResNet family in JAX/Flax NNX with PyTorch weight parity."""
