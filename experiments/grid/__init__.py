"""A grid of runs: methods by sparsities."""
