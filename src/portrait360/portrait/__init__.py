"""A portrait, and the weights that make it."""
