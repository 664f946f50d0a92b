"""What the files that the package writes have in common."""
