"""Trains an image classifier and prunes it during training: `python -m experiments.train --help`."""

import sys

from .devices import processes
from .errors import one_line_errors, out_of_memory
from .options import command_line
from .run import training


def main() -> None:
    """Parses the command line and trains.

    The exit status is 0 after the last epoch, 128 plus the signal's number after a signal, and 1 after an error.
    """
    with one_line_errors():
        config = command_line.parse(sys.argv[1:])
        cluster = config.coordinator, config.num_processes, config.process_id
        processes.check(*cluster)
        with processes.joined(*cluster) as group, out_of_memory():
            stopped_by = training.run(config, group)
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


if __name__ == "__main__":
    main()
