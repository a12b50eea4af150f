"""Programs compiled for GPUs that this machine does not have, and their figures."""
