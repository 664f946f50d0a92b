"""The folder of a run: its files, and reading, writing, and drawing them."""
