"""Runs: train, compare and measure. Not part of the installed library."""
