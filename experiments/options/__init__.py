"""The options of a run: their definitions, defaults and checks."""
