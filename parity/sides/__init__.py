"""The networks that a check compares, each run and recorded under PyTorch's names."""
