"""The training step, the images that feed it, and the compiled programs."""
