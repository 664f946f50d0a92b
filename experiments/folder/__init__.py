"""The folder that a run leaves on disk: what is in it, and how it is read, written and drawn."""
