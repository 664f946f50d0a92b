"""One training step, how images reach it, and what is compiled."""
