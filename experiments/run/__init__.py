"""A run from its first step to its last: setup, epochs, checkpoints, seeds."""
