"""The options of a run: what they are, what they default to, and what values are right."""
