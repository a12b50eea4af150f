"""What is compared, and how far apart two tensors may be."""
