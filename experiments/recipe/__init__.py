"""The recipe of a run: the options that decide what it computes, and the schedules and the optimizer they stand for."""
