"""Selection of the weights to keep: target counts, groups of layers, and exact top-k without sorting."""
