"""A run from its setup to its results: epochs, checkpoints, and seeds."""
