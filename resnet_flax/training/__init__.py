"""Training: configuration and recipes, the step, and the loop around it."""
