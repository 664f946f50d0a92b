"""Parts that all files of the package share."""
