"""The recipe of a run: options that decide what it computes, and the schedules and the optimizer that follow."""
