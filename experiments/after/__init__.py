"""Work on finished runs: comparing, measuring, and making networks smaller."""
